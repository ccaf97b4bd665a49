"""LLaMA Board in a real browser, against a real training run: preview, start, live curve, abort, save and load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="needs websockets, which gradio brings")

from tests.board.board_page import Board, serving
from tests.board.chrome import open_browser
from tests.board.keyboard import Keyboard
from tests.llamafactory_plugin import tiny
from tests.report.browser import browser

pytestmark = [
    pytest.mark.line_a,
    pytest.mark.slow,
    pytest.mark.skipif(browser() is None, reason="no chromium or google-chrome on this machine"),
]

EXTRA = {"reward_funcs": "rewards.py:share", "grpo_group_size": 4, "grpo_max_completion_length": 8}
EXTRA |= {
    "max_steps": 200,
    "logging_steps": 1,
    "preprocessing_num_workers": 1,
    "grpo_config": {"top_entropy_quantile": 1.0},
}
REWARD = """
import time

def share(completions, solution, **kwargs):
    time.sleep(0.5)
    return [len(set(c[0]["content"]) & set(s)) / len(set(s)) for c, s in zip(completions, solution)]
"""
CURVE = (
    "[...document.querySelectorAll('img')].find((image) => image.src.startsWith('data:image') && image.offsetParent)"
)
LOG = "[...document.querySelectorAll('pre')].find((log) => log.offsetParent)"
# Where an element begins and ends, and how wide what is in it would be.
SIDES = """(() => { const part = PART, box = part.getBoundingClientRect();
  return [box.left, box.right, part.scrollWidth]; })()"""
FIELDS = ("Stage", "Extra arguments", "Data dir", "Compute type", "Chat template")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page is started: a model, a data folder, a reward file."""
    found = tmp_path_factory.mktemp("board")
    tiny.build_model(found / "model")
    tiny.write_dataset(found / "data", "words", tiny.questions(64))
    (found / "rewards.py").write_text(REWARD, encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def board(folder: Path) -> Iterator[Board]:
    with serving(folder) as url, open_browser(folder) as page:
        yield Board(page, url)


def fill(board: Board, extra: dict[str, object], output: str) -> None:
    """Everything a user has to say for a run."""
    board.open()
    # A new stage clears the data sets, and a new model the template.
    board.choose("Stage", "GRPO")
    board.choose("Model name", "Custom")
    board.fill("Model path", "model")
    board.choose("Chat template", "qwen")
    board.choose("Dataset", "words")
    board.choose("Compute type", "fp32")
    board.press("Extra configurations")
    board.fill("Extra arguments", json.dumps(extra))
    board.name("Output dir", output)
    board.press("Preview command")
    board.page.idle()
    shown = board.answer()
    missing = [text for text in ("--dataset words ", "--template qwen ", f"lora/{output}") if text not in shown]
    assert missing == [], shown


def test_preview_save_and_load(board: Board, folder: Path) -> None:
    fill(board, EXTRA, "saved")
    shown = board.answer()
    assert "--stage grpo " in shown and all(f"--{key} " in shown for key in EXTRA)
    board.name("Config path", "mine.yaml")
    board.press("Save arguments")
    board.says("saved at: llamaboard_config/mine.yaml")
    saved = {label: board.shown(label) for label in FIELDS}
    assert saved["Stage"] == "GRPO" and json.loads(saved["Extra arguments"]) == EXTRA
    board.open()
    assert board.shown("Stage") != "GRPO"
    board.name("Config path", "mine.yaml")
    board.press("Load arguments")
    board.says("restored")
    board.page.idle()
    board.press("Extra configurations")
    board.page.wait(f"document.body.innerText.includes({json.dumps('words')})")
    assert {label: board.shown(label) for label in FIELDS} == saved
    assert board.errors() == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_keyboard_alone_reaches_a_command(board: Board, width: int) -> None:
    board.open(width)
    keys = Keyboard(board)
    # In the order of the page, so that Tab goes through all of it once.
    keys.choose("Model name", "Custom", search=True)
    keys.write("Model path", "model")
    keys.choose("Chat template", "qwen", search=True)
    keys.choose("Stage", "GRPO")
    keys.choose("Dataset", "words")
    keys.press("Extra configurations", " ")
    keys.write("Extra arguments", json.dumps(EXTRA))
    keys.press("Preview command", "Enter")
    shown = board.answer()
    missing = [text for text in ("--stage grpo ", "--dataset words ", "--template qwen ") if text not in shown]
    assert missing == [] and all(f"--{key} " in shown for key in EXTRA), shown
    # What follows the buttons is reached, too, and Space presses as Enter does.
    keys.press("Save arguments", " ")
    board.says("saved at: llamaboard_config/")
    keys.write("Output dir", "by_keys")
    assert board.errors() == []


def test_a_run_is_drawn_while_it_trains_and_stopped(board: Board, folder: Path) -> None:
    fill(board, EXTRA, "stopped")
    board.press("Start")
    text = board.says("step 3/200 | reward", 400)
    assert "A loss near 0 is normal" in text and "Running" in text
    # Two panels: as wide as one of LLaMA-Factory's, and twice as high.
    board.page.wait(
        f"(() => {{ const curve = {CURVE}; return curve && curve.naturalHeight > curve.naturalWidth; }})()"
    )
    for width in (1280, 390):
        board.page.resize(width)
        assert board.page.wait("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
        for name, part in (("curve", CURVE), ("log", LOG)):
            left, right, inside = board.page.value(SIDES.replace("PART", part))
            assert 0 <= left < right <= width and inside <= right - left + 1, f"{name}: not all of it is seen"
            board.page.value(f"{part}.scrollIntoView({{block: 'end'}})")
            assert board.page.screenshot(folder / f"board-{name}-{width}.png").stat().st_size > 20_000
    board.page.resize(1280)
    board.press("Abort")
    board.says("Finished.", 120)
    output = folder / "saves" / "Custom" / "lora" / "stopped"
    assert (output / "adapter_model.safetensors").exists(), "what was trained until then is not saved"
    rows = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    assert 3 <= len([row for row in rows if "reward" in row]) < 200
    assert board.errors() == []


def test_a_refused_run_says_why_on_the_page(board: Board) -> None:
    fill(board, EXTRA | {"grpo_group_sise": 4}, "refused")
    board.press("Start")
    assert "did you mean 'grpo_group_size'" in board.says("Failed. Exit code", 120)
    assert board.errors() == []

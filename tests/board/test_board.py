"""LLaMA Board in a real browser, against a real training run: preview, start, live curve, abort, save and load."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="needs websockets, which gradio brings")

from tests.board.board_page import Board, serving
from tests.board.chrome import open_browser
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
    # A new stage clears the data sets, and a new model the template, when the server has answered.
    board.choose("Stage", "GRPO")
    board.choose("Model name", "Custom")
    board.fill("Model path", "model")
    board.choose("Chat template", "qwen")
    board.choose("Dataset", "words")
    board.choose("Compute type", "fp32")
    board.press("Extra configurations")
    board.fill("Extra arguments", json.dumps(extra))
    board.name("Output dir", output)
    # On a busy machine the server's answer to one field comes after the next was written, and takes it away.
    again = {
        "Please choose a dataset": lambda: board.choose("Dataset", "words"),
        "Model not found": lambda: board.fill("Model path", "model"),
        "--template default": lambda: board.choose("Chat template", "qwen"),
    }
    for _ in range(10):
        board.press("Preview command")
        time.sleep(3)
        answer = board.answer()
        if "--dataset words" in answer and "--template default" not in answer:
            break
        for sign, repeat in again.items():
            if sign in answer:
                repeat()
    shown = board.says("--dataset words")
    assert "--template qwen " in shown and f"lora/{output}" in shown


def test_preview_save_and_load(board: Board, folder: Path) -> None:
    fill(board, EXTRA, "saved")
    shown = board.says("--stage grpo")
    assert all(f"--{key} " in shown for key in EXTRA)
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
    board.press("Extra configurations")
    board.page.wait(f"document.body.innerText.includes({json.dumps('words')})")
    assert {label: board.shown(label) for label in FIELDS} == saved
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
        board.page.value(f"{CURVE}.scrollIntoView()")
        assert board.page.screenshot(folder / f"board-{width}.png").stat().st_size > 20_000
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

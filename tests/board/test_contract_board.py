"""Where the plugin reaches into LLaMA Board: a new version fails here, by name. No browser, one run of two steps."""

from __future__ import annotations

import inspect
import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamafactory_plugin import board, register
from tests.board.conftest import PageArguments
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.prepared import prepare

pytestmark = pytest.mark.line_a


def test_the_page_s_module_draws_by_the_patched_function() -> None:
    from llamafactory.webui import control

    assert register.status()["patch_control"] == "applied"
    assert control.gen_loss_plot.__module__ == control.gen_loss_plot.__wrapped__.__module__
    assert "gr.Plot(gen_loss_plot(trainer_log))" in inspect.getsource(control.get_trainer_info)


def test_the_stage_keeps_the_data_sets_and_others_empty_them() -> None:
    from gradio import skip
    from llamafactory.webui.components import train

    assert train.change_stage.__name__ == "change_stage"
    assert train.change_stage(board.STAGE) == (skip(), False)
    assert train.change_stage("DPO") == ([], False) and train.change_stage("Pre-Training") == ([], True)
    assert "training_stage.change(change_stage, [training_stage], [dataset, packing]" in inspect.getsource(train)


def test_only_the_log_of_the_stage_is_wrapped(tmp_path: Path) -> None:
    from llamafactory.webui import control, interface, runner

    assert runner.get_trainer_info is control.get_trainer_info and interface.CSS.rstrip().endswith(board.CSS)
    (tmp_path / "running_log.txt").write_text("one ```\ntwo", encoding="utf-8")
    logs = {}
    for stage in ("grpo", "sft"):
        (tmp_path / "training_args.yaml").write_text(f"seed: 1\nstage: {stage}\n", encoding="utf-8")
        logs[stage], _, info = control.get_trainer_info("en", str(tmp_path), True)
        assert info == {}
    assert logs == {"grpo": "```grpo\none ```\ntwo\n```\n", "sft": "```\none ```\ntwo\n```\n"}
    assert control.get_trainer_info("en", str(tmp_path / "none"), True)[0] == ""


def drawn(folder: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The figure that the page shows of a run's log."""
    from llamafactory.webui import control

    rows = [row | {"total_steps": 9, "percentage": 9, "elapsed_time": "", "remaining_time": ""} for row in rows]
    (folder / "trainer_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(control.gr, "Plot", lambda figure: figure)
    return control.get_trainer_info("en", str(folder), True)[2]["loss_viewer"]


def test_the_reward_has_a_panel_below_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"current_steps": step, "loss": 0.1 * step, "reward": 0.5 * (step - 1)} for step in (1, 2, 3)]
    figure = drawn(tmp_path, [*rows, {"current_steps": 3, "eval_loss": 1.0}], monkeypatch)
    loss, reward = figure.axes
    assert [axes.get_ylabel() for axes in (loss, reward)] == ["loss", "reward"]
    # A reward of 0 is drawn, a row without a reward is not.
    assert list(reward.lines[0].get_xydata().ravel()) == [1, 0.0, 2, 0.5, 3, 1.0]
    assert list(loss.lines[0].get_xdata()) == [1, 2, 3]
    assert loss.get_position().y0 > reward.get_position().y1, "the panels overlap"


def test_a_run_without_a_reward_is_drawn_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(tmp_path, [{"current_steps": step, "loss": 1.0} for step in (1, 2)], monkeypatch)
    (loss,) = figure.axes
    assert loss.get_ylabel() == "loss" and figure.get_size_inches()[0] > figure.get_size_inches()[1]


@pytest.fixture
def started_by_the_page(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of a run that LLaMA Board starts; what such a run does to a process is undone."""
    import transformers

    monkeypatch.setenv("LLAMABOARD_ENABLED", "1")
    monkeypatch.setenv("LLAMABOARD_WORKDIR", str(workspace.output))
    loggers = [logging.getLogger(name) for name in ("llamafactory", transformers.__name__, board.LIBRARY)]
    before, handler = [list(logger.handlers) for logger in loggers], signal.getsignal(signal.SIGABRT)
    yield
    signal.signal(signal.SIGABRT, handler)
    for logger, handlers in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers


def test_a_run_with_the_page_s_defaults(
    workspace: Workspace, page_arguments: PageArguments, started_by_the_page: None
) -> None:
    """The arguments are those that the page writes; its log holds the live view, and the library's warnings."""
    from llamafactory.train.tuner import run_exp

    from trl_grpo_ext.health import callback as health

    sizes = {"grpo_group_size": 4, "grpo_max_completion_length": 8, "max_steps": 2, "logging_steps": 1}
    others = {"grpo_disable_report": True, "plot_loss": False, "preprocessing_num_workers": None}
    arguments = page_arguments(sizes | others)
    assert arguments["stage"] == "grpo" and arguments["include_num_input_tokens_seen"] is True
    run_exp(arguments)
    health.logger.warning("health, step 2: found")
    logging.getLogger("llamafactory").handlers[-1].close()  # waits for what is still to be written
    text = (workspace.output / "running_log.txt").read_text(encoding="utf-8")
    assert "step 2/2 | reward" in text and "A loss near 0 is normal" in text
    assert "health, step 2: found" in text, "the page does not show the warnings of the library"
    assert "Tried to track the number of tokens" not in text
    rows = [json.loads(line) for line in (workspace.output / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    assert [row["current_steps"] for row in rows if "reward" in row] == [1, 2] and rows[0]["total_tokens"] > 0


def test_what_the_page_drops_is_what_the_documentation_says(page_arguments: PageArguments) -> None:
    """False, null and the empty text never reach the YAML file; of our keys only this one means something by False."""
    from llamafactory.hparams import FinetuningArguments

    from llamafactory_plugin.arguments import is_own_name

    fields = [item for item in FinetuningArguments.__dataclass_fields__.values() if is_own_name(item.name)]
    by_default_on = {item.name for item in fields if item.default is True}
    of_three = {item.name for item in fields if "bool" in str(item.type) and item.default is None}
    assert by_default_on == set() and of_three == {"grpo_normalize_advantages"}
    assert "grpo_normalize_advantages" not in page_arguments({"grpo_normalize_advantages": False})
    kept = page_arguments({"grpo_scale_rewards": "none", "grpo_config": {"use_liger_loss": False}, "max_steps": 1})
    assert prepare(kept | {"preprocessing_num_workers": None}).config.scale_rewards == "none"
    assert kept["grpo_config"] == {"use_liger_loss": False}


def test_a_completion_can_not_close_the_fence_of_the_log(
    monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    monkeypatch.setenv("LLAMABOARD_ENABLED", "1")
    stream = board.live_stream()
    print("one ```python", "", "two", sep="\n", file=stream, flush=True)
    assert log_lines == ["one '''python", "two"] and stream is not None and not stream.isatty()
    monkeypatch.delenv("LLAMABOARD_ENABLED")
    assert board.live_stream() is None

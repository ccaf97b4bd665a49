"""`grpo-ext check cfg.yaml`: the run's arithmetic, columns and rewards, without its model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamafactory_plugin import workflow
from llamafactory_plugin.check import main
from tests.llamafactory_plugin.conftest import Workspace


@pytest.fixture
def check(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(workflow, "load_model", lambda *_: pytest.fail("the model was loaded"))

    def run(*overrides: str, **options: Any) -> tuple[int, str]:
        status = main([str(workspace.yaml(**options)), *overrides])
        captured = capsys.readouterr()
        assert not workspace.output.exists()
        return status, captured.out + captured.err

    return run


def test_a_sound_run(check: Any) -> None:
    status, text = check("gradient_accumulation_steps=2")
    assert status == 0
    assert "batch: 4 prompts x 4 completions = 16 completions per step" in text
    assert "train_dataset: 16 prompts, columns" in text and "longest prompt: " in text
    line = next(line for line in text.splitlines() if line.startswith("exact_match"))
    assert line.split()[1:6] == ["1.000", "0.000", "0.000", "0.000", "0.000"]


def test_a_reward_that_does_not_separate_is_flagged(check: Any, workspace: Workspace) -> None:
    (workspace.folder / "rewards.py").write_text(
        "def long(completions, **kwargs):\n    return [float(len(c[0]['content']) > 0) for c in completions]\n",
        encoding="utf-8",
    )
    status, text = check(reward_funcs="rewards.py:long")
    assert status == 1 and "DOES NOT SEPARATE" in text


def test_a_reward_that_raises_on_an_empty_text(check: Any, workspace: Workspace) -> None:
    (workspace.folder / "rewards.py").write_text(
        "def first(completions, **kwargs):\n    return [float(ord(c[0]['content'][0])) for c in completions]\n",
        encoding="utf-8",
    )
    status, text = check(reward_funcs="rewards.py:first")
    assert status == 1 and "first raised IndexError on the probe 'empty'" in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"per_device_train_batch_size": 6}, "set per_device_train_batch_size to 4 or 8"),
        ({"stage": "sft", "grpo_group_size": None, "grpo_max_completion_length": None}, "not 'sft'"),
        ({"grpo_bta": 1}, "did you mean 'grpo_beta'?"),
        ({"grpo_extra_columns": "level"}, "has no column 'level'"),
    ],
)
def test_what_a_run_would_refuse_is_refused(check: Any, options: dict[str, Any], sentence: str) -> None:
    status, text = check(**options)
    assert status == 1 and sentence in text


def test_the_installed_command(workspace: Workspace) -> None:
    command = Path(sys.executable).parent / "grpo-ext"
    arguments = [str(command), "check", str(workspace.yaml(per_device_train_batch_size=6))]
    result = subprocess.run(arguments, capture_output=True, text=True, cwd=workspace.folder)
    assert result.returncode == 1 and "error: per_device_train_batch_size (6)" in result.stderr
    unknown = subprocess.run([str(command), "chek"], capture_output=True, text=True)
    assert unknown.returncode == 2 and "check" in unknown.stderr

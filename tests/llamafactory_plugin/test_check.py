"""`grpo-ext check cfg.yaml`: the run's arithmetic, columns and rewards, without its model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamafactory_plugin import workflow
from llamafactory_plugin.check import main
from tests.llamafactory_plugin import tiny
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
    assert status == 1 and "first raised RewardError on the probe 'empty'" in text
    assert "IndexError" in text and f'File "{workspace.folder / "rewards.py"}", line 2, in first' in text


def test_the_table_tells_columns_time_and_the_longest_prompts(check: Any) -> None:
    _, text = check(reward_funcs="exact_match")
    header = next(line for line in text.splitlines() if line.startswith("reward "))
    titles = ["gold", "corrupted", "empty", "constant", "master key", "spread", "skipped", "ms/completion", "reads"]
    assert [title for title in titles if title not in header] == []
    assert next(line for line in text.splitlines() if line.startswith("exact_match")).split()[-1] == "solution"
    longest = [line for line in text.splitlines() if " tokens: Which word is second" in line]
    counts = [int(line.split()[0]) for line in longest]
    assert len(counts) == 3 and counts == sorted(counts, reverse=True)


def test_a_reward_of_the_form_need_not_separate_when_the_sum_does(check: Any) -> None:
    status, text = check(reward_funcs="exact_match,tag_format")
    assert status == 0
    assert "DOES NOT SEPARATE" in next(line for line in text.splitlines() if line.startswith("tag_format"))
    assert any(line.startswith("total ") for line in text.splitlines())
    status, _ = check(reward_funcs="exact_match,tag_format", reward_weights="0,1")
    assert status == 1


def test_a_text_without_an_answer_that_is_paid(check: Any, workspace: Workspace) -> None:
    (workspace.folder / "rewards.py").write_text(
        "def fooled(completions, solution, **kwargs):\n"
        "    texts = [completion[0]['content'] for completion in completions]\n"
        "    return [float(t == s or t.startswith('Thought')) for t, s in zip(texts, solution)]\n",
        encoding="utf-8",
    )
    status, text = check(reward_funcs="rewards.py:fooled")
    assert status == 1 and "PAYS 'master key'" in text


def test_a_composition_is_run_in_whole_groups(check: Any) -> None:
    mapping = {"rewards": ["exact_match", {"reward": "tag_format", "weight": 0.1}], "total": "standardise"}
    status, text = check(grpo_reward_composition=mapping)
    assert status == 0 and any(line.startswith("composite ") for line in text.splitlines())


def test_a_label_free_reward_is_not_asked_to_separate_but_its_truth_is(check: Any, workspace: Workspace) -> None:
    rows = [row | {"known": index < 8} for index, row in enumerate(tiny.questions(16))]
    tiny.write_dataset(workspace.data, "mixed", rows)
    options = {"dataset": "mixed", "grpo_extra_columns": "known", "reward_funcs": "self_consistency"}
    guard = {"truth": "exact_match", "canary_column": "known"}
    status, text = check(**options, grpo_collapse_guard=guard)
    assert status == 0 and "reads no label" in text
    assert any(line.startswith("exact_match") for line in text.splitlines())


def test_a_reward_model_is_run_only_when_asked_for(
    check: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory_plugin import reward_model

    monkeypatch.setattr(reward_model.ValueHeadReward, "_check_value_head", lambda self: None)
    monkeypatch.setattr(reward_model.ValueHeadReward, "load", lambda self: pytest.fail("the reward model was loaded"))
    status, text = check(reward_model="elsewhere", reward_model_type="full", reward_funcs="exact_match")
    assert status == 0 and "reward_model is not run" in text and "--reward-model" in text


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

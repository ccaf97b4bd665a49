"""examples/llamafactory runs as printed, but for the model, the sizes and the device."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from llamafactory.data.template import TEMPLATES

from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.tiny import WORDS, write_dataset

EXAMPLES = Path(__file__).parents[2] / "examples" / "llamafactory"


def test_qwen3_lora_grpo(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    # LLaMA-Factory writes `default_system` into its template object, which later tests in this process would meet.
    monkeypatch.setitem(TEMPLATES, "qwen3", copy.deepcopy(TEMPLATES["qwen3"]))
    source = workspace.folder / "source"
    source.mkdir()
    rows = [{"question": f"What is {number} plus 1?", "answer": f"It is.\n#### {number + 1}"} for number in range(12)]
    for split in ("train", "test"):
        (source / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    script = [sys.executable, str(EXAMPLES / "prepare_gsm8k.py"), "--source", str(source), "--output", "data"]
    subprocess.run(script, cwd=workspace.folder, check=True)
    run = yaml.safe_load((EXAMPLES / "qwen3_lora_grpo.yaml").read_text(encoding="utf-8"))
    tiny = {"model_name_or_path": workspace.defaults["model_name_or_path"], "use_cpu": True, "bf16": False}
    sizes = {"gradient_accumulation_steps": 1, "grpo_max_completion_length": 8, "max_steps": 2, "val_size": 2}
    places = {"dataset_dir": str(workspace.data), "output_dir": str(workspace.output), "eval_steps": 2}
    workspace.defaults = {}
    workspace.run(**run | tiny | sizes | places | {"preprocessing_num_workers": None})
    rows = workspace.completions()
    assert len(rows) == 16 and "####" in rows[0]["solution"]
    assert "plus 1?" in rows[0]["prompt"][-1]["content"]
    evaluations = workspace.completions("eval_completions.jsonl")
    assert len(evaluations) == 2 * 2 * run["grpo_group_size"]  # after step 2, and at the end
    assert (workspace.output / "adapter_model.safetensors").exists()


TINY = {"use_cpu": True, "bf16": False, "gradient_accumulation_steps": 1, "max_steps": 2, "overwrite_cache": True}


def small(workspace: Workspace, name: str, **overrides: Any) -> Path:
    """An example with the local model and small sizes, beside a copy of its reward file."""
    run = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))
    run |= TINY | {"model_name_or_path": workspace.defaults["model_name_or_path"], "dataset_dir": str(workspace.data)}
    run |= {"grpo_max_completion_length": 8} if run["stage"] == "grpo" else {}
    path = workspace.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(run | {"output_dir": str(workspace.output)} | overrides), encoding="utf-8")
    (workspace.folder / "rewards.py").write_text((EXAMPLES / "rewards.py").read_text(encoding="utf-8"))
    return path


def train(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, as the command does: the YAML file stands on the command line."""
    from llamafactory.train.tuner import run_exp

    monkeypatch.setattr(sys, "argv", ["llamafactory-cli", str(path)])
    run_exp()


@pytest.fixture
def gsm8k(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setitem(TEMPLATES, "qwen3", copy.deepcopy(TEMPLATES["qwen3"]))
    rows = [{"question": f"What is {number} plus 1?", "answer": f"It is.\n#### {number + 1}"} for number in range(16)]
    for name in ("gsm8k", "gsm8k_test"):
        write_dataset(workspace.data, name, rows, columns={"prompt": "question", "response": "answer"})
    return workspace


def logged_names(workspace: Workspace) -> set[str]:
    return {name for entry in workspace.log() for name in entry}


def test_own_rewards(gsm8k: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    train(small(gsm8k, "own_rewards"), monkeypatch)
    assert set(gsm8k.completions()[0]["rewards"]) == {"verl_score", "answer_form", "short_working"}
    names = {"short_working/characters", "rewards/verl_score/answered", "reward_runtime/short_working/timeouts"}
    assert names <= logged_names(gsm8k)


def test_dapo(gsm8k: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    train(small(gsm8k, "dapo"), monkeypatch)
    assert {"sampling/rounds", "groups/dead_share"} <= logged_names(gsm8k)


def test_composed_rewards(gsm8k: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    train(small(gsm8k, "composed_rewards"), monkeypatch)
    assert set(gsm8k.completions()[0]["rewards"]) == {"mixed"}
    weights = [entry["mixed/form/weight"] for entry in gsm8k.log() if "mixed/form/weight" in entry]
    assert weights == [0.5, 0.0]
    assert {"mixed/correctness/gated", "mixed/repetition_penalty/mean"} <= logged_names(gsm8k)


def test_label_free_guard(gsm8k: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    train(small(gsm8k, "label_free_guard", interleave_probs="0.5,0.5", per_device_train_batch_size=32), monkeypatch)
    assert "guarded_label_free/pseudo_reward" in logged_names(gsm8k) or "canary_accuracy" in logged_names(gsm8k)
    assert set(gsm8k.completions()[0]["rewards"]) == {"guarded_label_free"}


def test_a_reward_model_and_then_grpo(gsm8k: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"conversations": [{"from": "human", "value": f"Say {word}."}]} for word in WORDS]
    rows = [
        row | {"chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"}} for row in rows
    ]
    info = {"formatting": "sharegpt", "ranking": True}
    info["columns"] = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    write_dataset(gsm8k.data, "dpo_en_demo", rows, **info)
    trained = gsm8k.folder / "rm"
    train(small(gsm8k, "reward_model_rm", output_dir=str(trained)), monkeypatch)
    places = {"reward_model": gsm8k.defaults["model_name_or_path"], "reward_model_adapters": str(trained)}
    train(small(gsm8k, "reward_model_grpo", **places), monkeypatch)
    rewards = [row["rewards"] for row in gsm8k.completions()]
    assert {"repetition_penalty", "reward_model"} == set(rewards[0])
    assert len({row["reward_model"] for row in rewards}) > 4

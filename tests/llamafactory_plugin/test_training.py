"""Real runs through LLaMA-Factory's `run_exp`: what is trained, logged, saved, resumed and evaluated."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace

# Rises with the share of vowels: a reward that a random model already varies in, so that there is something to learn.
REWARD_FILE = """
def vowels(completions, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]
"""


@pytest.fixture
def vowels(workspace: Workspace) -> dict[str, Any]:
    path = workspace.folder / "rewards.py"
    path.write_text(REWARD_FILE, encoding="utf-8")
    return {"reward_funcs": f"{path}:vowels", "learning_rate": 1e-3}


class Probe(TrainerCallback):
    """Keeps the model, and the inputs and options of every `generate` call."""

    def __init__(self) -> None:
        self.model: Any = None
        self.prompts: list[torch.Tensor] = []
        self.options: list[Any] = []
        self.was_training: list[bool] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.attach(kwargs["model"])

    def attach(self, model: Any) -> None:
        self.model = model
        owner = model.get_base_model() if hasattr(model, "get_base_model") else model
        generate = owner.generate

        def spy(*positional: Any, **named: Any) -> Any:
            self.prompts.append(named["input_ids"].clone())
            self.options.append(owner._prepare_generation_config(named["generation_config"])[0])
            self.was_training.append(model.training)
            return generate(*positional, **named)

        owner.generate = spy


def trainable_weights(folder: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if (folder / "adapter_model.safetensors").exists() else "model.safetensors"
    return load_file(folder / name)


@pytest.mark.parametrize("finetuning_type", ["lora", "full", "freeze", "oft"])
def test_every_finetuning_type_trains_and_saves(workspace: Workspace, vowels: Any, finetuning_type: str) -> None:
    options = {"freeze_trainable_layers": 1, "oft_block_size": 4, "oft_rank": 0}
    workspace.run(**vowels, finetuning_type=finetuning_type, **options)
    saved = trainable_weights(workspace.output)
    if finetuning_type in ("full", "freeze"):
        start = load_file(Path(workspace.defaults["model_name_or_path"]) / "model.safetensors")
        changed = {name for name in saved if not torch.equal(saved[name], start[name])}
        first_layer = {name for name in saved if "layers.0." in name}
        assert changed >= first_layer if finetuning_type == "full" else changed and not changed & first_layer
    else:
        zeros_at_start = [tensor for name, tensor in saved.items() if "lora_B" in name or "oft_R" in name]
        assert zeros_at_start and all(tensor.abs().sum() > 0 for tensor in zeros_at_start)
    for name in ("trainer_log.jsonl", "train_results.json", "README.md", "tokenizer_config.json"):
        assert (workspace.output / name).exists(), name
    assert "grpo" in (workspace.output / "README.md").read_text(encoding="utf-8")


def test_completions_file_holds_every_completion_with_rewards_and_advantage(workspace: Workspace, vowels: Any) -> None:
    workspace.run(**vowels, gradient_accumulation_steps=2)
    rows = workspace.completions()
    assert [row["step"] for row in rows] == [1] * 16 + [2] * 16
    for group in (rows[start : start + 4] for start in range(0, 32, 4)):
        assert len({row["prompt"][-1]["content"] for row in group}) == 1
        assert abs(sum(row["advantage"] for row in group)) < 1e-4
        rewards = torch.tensor([row["reward"] for row in group])
        expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        assert torch.allclose(expected, torch.tensor([row["advantage"] for row in group]), atol=1e-4)
    for row in rows:
        text = row["completion"]
        assert math.isclose(
            row["rewards"]["vowels"], sum(c in "aeiou" for c in text) / max(len(text), 1), abs_tol=1e-6
        )
        assert row["solution"] in tiny.WORDS and row["tokens"] <= 8


def test_prints_prompts_times_completions(workspace: Workspace, vowels: Any, log_lines: list[str]) -> None:
    workspace.run(**vowels, gradient_accumulation_steps=2, max_steps=1)
    assert any("4 prompts x 4 completions per step" in line for line in log_lines)


def test_the_true_reward_rises_and_controls_do_not(workspace: Workspace, vowels: Any) -> None:
    """Mean reward of the last against the first five of 30 steps, two seeds."""
    gains: dict[str, list[float]] = {"none": [], "shuffled": [], "random": []}
    options = vowels | {"learning_rate": 1e-2, "finetuning_type": "full", "max_steps": 30, "logging_steps": 30}
    options |= {"per_device_train_batch_size": 32, "grpo_group_size": 8, "disable_gradient_checkpointing": True}
    for seed in (1, 2):
        for control, measured in gains.items():
            workspace.run(**options, grpo_reward_control=control, seed=seed, overwrite_output_dir=True)
            rows = workspace.completions()
            score = [sum(c in "aeiou" for c in row["completion"]) / max(len(row["completion"]), 1) for row in rows]
            measured.append(sum(score[-160:]) / 160 - sum(score[:160]) / 160)
    assert min(gains["none"]) > 0.15, gains
    assert max(gains["shuffled"] + gains["random"]) < 0.5 * min(gains["none"]), gains


@pytest.mark.parametrize("finetuning_type", ["lora", "full"])
def test_kl_starts_at_zero_because_the_reference_is_the_start_model(
    workspace: Workspace, vowels: Any, finetuning_type: str
) -> None:
    workspace.run(**vowels | {"learning_rate": 1e-2}, finetuning_type=finetuning_type, grpo_beta=0.05, max_steps=3)
    kl = [entry["kl"] for entry in workspace.log() if "kl" in entry]
    assert abs(kl[0]) < 1e-6
    assert kl[2] > 1e-5


def test_reference_model_is_the_one_named(workspace: Workspace, vowels: Any, tmp_path: Path) -> None:
    other = tiny.build_model(tmp_path / "other", seed=7)
    workspace.run(**vowels, finetuning_type="full", grpo_beta=0.05, ref_model=str(other), max_steps=1)
    kl = [entry["kl"] for entry in workspace.log() if "kl" in entry]
    assert kl[0] > 1e-3


def test_without_beta_no_reference_is_loaded(
    workspace: Workspace, vowels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory_plugin import workflow

    monkeypatch.setattr(workflow, "create_ref_model", lambda *_: pytest.fail("a reference model was loaded"))
    workspace.run(**vowels, finetuning_type="full", max_steps=1)
    assert not any("kl" in entry for entry in workspace.log())


@pytest.mark.parametrize("resume", ["by name", True, None], ids=["by name", "true", "automatically"])
def test_resumes_from_a_checkpoint_and_keeps_earlier_completions(
    workspace: Workspace, vowels: Any, resume: str | bool | None
) -> None:
    options = vowels | {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    workspace.run(**options)
    first = workspace.completions()
    with open(workspace.output / "completions.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 5, "prompt"')  # what a kill leaves behind
    shutil.rmtree(workspace.output / "checkpoint-4")
    workspace.run(
        **options, resume_from_checkpoint=str(workspace.output / "checkpoint-2") if resume == "by name" else resume
    )
    rows = workspace.completions()
    assert [row["step"] for row in rows] == [step for step in (1, 2, 3, 4) for _ in range(8)]
    assert rows[:16] == first[:16]
    state = json.loads((workspace.output / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 4


def test_a_fresh_run_starts_the_completions_file_anew(workspace: Workspace, vowels: Any) -> None:
    workspace.run(**vowels)
    workspace.run(**vowels, overwrite_output_dir=True)
    assert len(workspace.completions()) == 16


def test_best_model_by_eval_reward(workspace: Workspace, vowels: Any) -> None:
    options = vowels | {"val_size": 4, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}
    workspace.run(**options, save_steps=1, load_best_model_at_end=True, plot_loss=True)
    state = json.loads((workspace.output / "trainer_state.json").read_text(encoding="utf-8"))
    rewards = [entry["eval_reward"] for entry in state["log_history"] if "eval_reward" in entry]
    assert len(rewards) >= 2
    assert state["best_metric"] == pytest.approx(max(rewards[:2]))
    assert (workspace.output / "training_eval_reward.png").exists()
    assert len(workspace.completions("eval_completions.jsonl")) == 3 * 4 * 4


def test_several_eval_sets_have_a_reward_each(workspace: Workspace, vowels: Any) -> None:
    tiny.write_dataset(workspace.data, "first", tiny.questions(2, seed=1))
    tiny.write_dataset(workspace.data, "second", tiny.questions(4, seed=2))
    workspace.run(**vowels, eval_dataset="first,second", eval_on_each_dataset=True, do_eval=True, max_steps=1)
    metrics = json.loads((workspace.output / "eval_results.json").read_text(encoding="utf-8"))
    assert {"eval_first_reward", "eval_second_reward"} <= metrics.keys()
    assert "eval_reward" not in metrics
    rows = workspace.completions("eval_completions.jsonl")
    means = [sum(row["reward"] for row in part) / len(part) for part in (rows[:8], rows[8:])]
    assert [metrics["eval_first_reward"], metrics["eval_second_reward"]] == pytest.approx(means, abs=1e-5)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_evaluates_without_training(workspace: Workspace, vowels: Any, loss_type: str) -> None:
    workspace.run(**vowels, do_train=False, do_eval=True, val_size=4, grpo_loss_type=loss_type)
    metrics = json.loads((workspace.output / "eval_results.json").read_text(encoding="utf-8"))
    assert 0 <= metrics["eval_reward"] <= 1
    assert not (workspace.output / "completions.jsonl").exists()
    assert len(workspace.completions("eval_completions.jsonl")) == 16


def test_an_evaluation_alone_begins_its_own_file_and_leaves_the_trainings(workspace: Workspace, vowels: Any) -> None:
    workspace.run(**vowels)
    trained = workspace.completions()
    for _ in range(2):
        workspace.run(**vowels, do_train=False, do_eval=True, val_size=4)
    assert workspace.completions() == trained
    assert len(workspace.completions("eval_completions.jsonl")) == 16


def test_evaluation_temperature_zero_is_greedy_and_leaves_training_alone(workspace: Workspace, vowels: Any) -> None:
    probe = Probe()
    options = vowels | {"val_size": 4, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    workspace.run([probe], **options, grpo_eval_temperature=0)
    groups = workspace.completions("eval_completions.jsonl")
    for start in range(0, len(groups), 4):
        assert len({row["completion"] for row in groups[start : start + 4]}) == 1
    assert [options.do_sample for options in probe.options] == probe.was_training
    modes = zip(probe.options, probe.was_training, strict=True)
    assert {options.temperature for options, training in modes if training} == {1.0}


def test_weights_of_several_rewards(workspace: Workspace, vowels: Any) -> None:
    workspace.run(**vowels | {"reward_funcs": ["exact_match", vowels["reward_funcs"]], "reward_weights": "0,2"})
    for row in workspace.completions():
        assert row["reward"] == pytest.approx(2 * row["rewards"]["vowels"], abs=1e-6)


def test_completions_do_not_depend_on_dropout(workspace: Workspace, vowels: Any, tmp_path: Path) -> None:
    class Twice(TrainerCallback):
        same: bool = False

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model, ids = kwargs["model"].train(), torch.arange(20, 40).unsqueeze(0)
            with torch.no_grad():
                self.same = torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)

    probe = Twice()
    model = tiny.build_model(tmp_path / "dropout", dropout=0.5)
    workspace.run([probe], **vowels, model_name_or_path=str(model), lora_dropout=0.5, max_steps=1)
    assert probe.same


def test_full_model_loads_with_from_pretrained(workspace: Workspace, vowels: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    workspace.run(**vowels, finetuning_type="full")
    model = AutoModelForCausalLM.from_pretrained(workspace.output)
    tokenizer = AutoTokenizer.from_pretrained(workspace.output)
    assert model.num_parameters() > 0 and len(tokenizer) == model.config.vocab_size


def test_a_row_without_a_reward_has_no_advantage_and_no_share_in_the_baseline(workspace: Workspace) -> None:
    """TRL 0.24 alone would count None as 0."""
    (workspace.folder / "rewards.py").write_text(
        "def two_of_four(completions, **kwargs):\n"
        "    return [None if row % 4 < 2 else float(row % 4) for row in range(len(completions))]\n",
        encoding="utf-8",
    )
    workspace.run(reward_funcs=f"{workspace.folder / 'rewards.py'}:two_of_four")
    rows = workspace.completions()
    expected = [0.0, 0.0, -(0.5**0.5), 0.5**0.5]  # of rewards 2 and 3 alone: mean 2.5, std sqrt(1/2)
    for start in range(0, len(rows), 4):
        group = rows[start : start + 4]
        assert [row["rewards"]["two_of_four"] for row in group] == [None, None, 2.0, 3.0]
        assert [row["reward"] for row in group] == [None, None, 2.0, 3.0]
        assert [row["advantage"] for row in group] == pytest.approx(expected, abs=1e-3)


def test_an_isolated_reward_of_a_reward_file(workspace: Workspace) -> None:
    """The function of a file that only this process has imported runs in worker processes."""
    (workspace.folder / "rewards.py").write_text(
        REWARD_FILE
        + "\nimport os\nfrom trl_grpo_ext.rewards import IsolatedReward\n"
        + "def elsewhere(completions, trainer_pid, **kwargs):\n"
        + "    assert os.getpid() != int(trainer_pid[0])\n    return vowels(completions)\n"
        + "isolated = IsolatedReward(elsewhere, name='isolated', on_error='raise')\n",
        encoding="utf-8",
    )
    rows = [row | {"trainer_pid": os.getpid()} for row in tiny.questions(16)]
    tiny.write_dataset(workspace.data, "with_pid", rows)
    path = workspace.folder / "rewards.py"
    workspace.run(dataset="with_pid", grpo_extra_columns="trainer_pid", reward_funcs=f"{path}:isolated,{path}:vowels")
    rows = workspace.completions()
    assert len(rows) == 16
    assert all(row["rewards"]["isolated"] == row["rewards"]["vowels"] for row in rows)

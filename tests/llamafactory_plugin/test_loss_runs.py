"""Losses, schedules and sampling in real runs through LLaMA-Factory: what is trained on, written and resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from llamafactory_plugin import workflow
from llamafactory_plugin.rendered_rollouts import ROW, RenderedRollouts
from llamafactory_plugin.trainer import LlamaFactoryGRPOTrainer
from tests.batching.models import OFF
from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.test_training import trainable_weights, vowels
from trl_grpo_ext import import_trl
from trl_grpo_ext.presets import PRESETS

__all__ = ["vowels"]

# Mostly 0, so that many groups are dead; it needs a column that is hidden from TRL.
RARE = """
def rare(completions, rejected, **kwargs):
    assert set(rejected) == {"none"}
    return [float(completion[0]["content"][:1].isalpha()) for completion in completions]
"""


@pytest.fixture
def rare(workspace: Workspace) -> dict[str, Any]:
    rows = [
        {"instruction": row["instruction"], "chosen": row["output"], "rejected": "none"} for row in tiny.questions(48)
    ]
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    tiny.write_dataset(workspace.data, "pairs", rows, ranking=True, columns=columns)
    (workspace.folder / "rewards.py").write_text(RARE, encoding="utf-8")
    return {"reward_funcs": f"{workspace.folder / 'rewards.py'}:rare", "dataset": "pairs", "learning_rate": 1e-3}


def logged(workspace: Workspace, name: str) -> list[float]:
    return [entry[name] for entry in workspace.log() if name in entry]


def groups(workspace: Workspace, step: int) -> Iterator[list[dict[str, Any]]]:
    rows = [row for row in workspace.completions() if row["step"] == step]
    return (rows[start : start + 4] for start in range(0, len(rows), 4))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains(workspace: Workspace, vowels: Any, preset: str, log_lines: list[str]) -> None:
    workspace.run(**vowels, grpo_preset=preset)
    saved = trainable_weights(workspace.output)
    assert all(tensor.abs().sum() > 0 for name, tensor in saved.items() if "lora_B" in name)
    assert any(f"preset {preset}" in line for line in log_lines)
    for step in (1, 2):
        for group in groups(workspace, step):
            rewards = torch.tensor([row["reward"] for row in group])
            advantages = torch.tensor([row["advantage"] for row in group])
            assert torch.allclose(advantages, expected_advantages(preset, rewards), atol=1e-3)


def expected_advantages(preset: str, rewards: torch.Tensor) -> torch.Tensor:
    centred = rewards - rewards.mean()
    if preset in ("dr_grpo", "reference_clip"):
        return centred
    if preset == "rloo":
        return centred * 4 / 3
    if preset == "mc_grpo":
        deviation = rewards - (rewards.sort().values[1] + rewards.sort().values[2]) / 2
        spread = deviation.abs().sort().values
        mad = (spread[1] + spread[2]) / 2
        return deviation / ((mad if mad > 1e-6 else spread.mean()) + 1e-3)
    if preset == "normalized_clip":
        return centred / (rewards.std(correction=0) + 1e-8)
    return centred / (rewards.std() + 1e-4)


def test_without_our_options_it_trains_as_trl_does(
    workspace: Workspace, vowels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parameters of TRL's own seams, with LLaMA-Factory's rollouts below them, bit for bit."""
    options = {"grpo_beta": 0.05, "grpo_num_iterations": 2, "gradient_accumulation_steps": 2, "max_steps": 3}
    # Batching is exact, and to rounding only.
    options |= {"grpo_config": OFF}
    workspace.run(**vowels, **options)
    ours = trainable_weights(workspace.output)

    def generate(self: Any, inputs: Any) -> Any:
        output = RenderedRollouts._generate_and_score_completions(self, inputs)
        output.pop(ROW)
        return output

    stock = {name: getattr(import_trl().GRPOTrainer, name) for name in STOCK_SEAMS}
    stock |= {"_calculate_rewards": RenderedRollouts._calculate_rewards, "_generate_and_score_completions": generate}
    for name, method in stock.items():
        monkeypatch.setattr(LlamaFactoryGRPOTrainer, name, method)
    workspace.run(**vowels, **options, overwrite_output_dir=True)
    theirs = trainable_weights(workspace.output)
    assert not logged(workspace, "ratio/median")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


STOCK_SEAMS = (
    *("_compute_loss", "_prepare_inputs", "_get_train_sampler"),
    "_get_per_token_logps_and_entropies",
)


def test_dynamic_sampling_writes_the_rows_that_are_trained_on(workspace: Workspace, rare: Any) -> None:
    workspace.run(**rare, grpo_config={"dynamic_sampling_rounds": 2}, per_device_train_batch_size=16)
    assert_rows_are_those_trained_on(workspace)


@pytest.mark.slow
def test_dynamic_sampling_on_two_ranks(workspace: Workspace, rare: Any) -> None:
    path = workspace.yaml(**rare, grpo_config={"dynamic_sampling_rounds": 2}, per_device_train_batch_size=8)
    workspace.cli(path, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    assert_rows_are_those_trained_on(workspace)


def assert_rows_are_those_trained_on(workspace: Workspace) -> None:
    assert sum(logged(workspace, "sampling/groups_replaced")) > 0
    for step, share in enumerate(logged(workspace, "sampling/dead_share_left"), start=1):
        found = list(groups(workspace, step))
        assert len(found) == 4
        assert len({json.dumps(group[0]["prompt"]) for group in found}) == 4
        dead = 0
        for group in found:
            assert len({json.dumps(row["prompt"]) for row in group}) == 1
            rewards = torch.tensor([row["reward"] for row in group])
            assert rewards.tolist() == [float(row["completion"][:1].isalpha()) for row in group]
            advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
            assert torch.allclose(torch.tensor([row["advantage"] for row in group]), advantages, atol=1e-3)
            dead += int(rewards.std() == 0)
        assert dead / 4 == pytest.approx(share)
    assert logged(workspace, "reward")[0] == pytest.approx(logged(workspace, "rewards/rare/mean")[0])


def test_the_command_line_with_a_schedule_and_dynamic_sampling(workspace: Workspace, rare: Any) -> None:
    mapping = {"dynamic_sampling_rounds": 1, "clip_schedule": "linear", "clip_final_factor": 0.5}
    path = workspace.yaml(**rare, grpo_preset="dapo", grpo_config=mapping)
    output = workspace.cli(path).stdout
    line = (
        "loss dapo, clip 0.2 below and 0.28 above, beta 0.0, preset dapo, clip_schedule linear, clip_final_factor 0.5"
    )
    assert line in output and "dynamic_sampling_rounds 1" in output
    assert len(workspace.completions()) == 16
    assert logged(workspace, "sampling/rounds")[0] in (0.0, 1.0)


@pytest.mark.parametrize("finetuning_type", ["lora", "full"])
def test_the_reference_anchor_has_its_reference_at_beta_0(
    workspace: Workspace, vowels: Any, monkeypatch: pytest.MonkeyPatch, finetuning_type: str
) -> None:
    made: list[Any] = []
    create = workflow.create_ref_model
    monkeypatch.setattr(workflow, "create_ref_model", lambda *args: made.append(create(*args)) or made[-1])
    mapping = {"clip_anchor": "reference"}
    workspace.run(
        **vowels | {"learning_rate": 1e-2}, finetuning_type=finetuning_type, grpo_config=mapping, max_steps=3
    )
    assert [model is not None for model in made] == [finetuning_type == "full"]
    kl, median = logged(workspace, "kl"), logged(workspace, "ratio/min")
    assert abs(kl[0]) < 1e-6 and kl[2] > 1e-5
    assert median[0] == pytest.approx(1.0, abs=1e-4) and median[2] < 0.999


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, float]]:
    """Step, lower clip range and the curriculum's target of each loss."""
    found: list[tuple[int, float, float]] = []
    compute_loss = LlamaFactoryGRPOTrainer._compute_loss

    def spy(self: Any, model: Any, inputs: Any) -> Any:
        found.append((self.state.global_step, round(self.epsilon_low, 6), round(self.curriculum.target, 6)))
        return compute_loss(self, model, inputs)

    monkeypatch.setattr(LlamaFactoryGRPOTrainer, "_compute_loss", spy)
    return found


def test_a_resumed_run_goes_on_with_schedule_and_curriculum(workspace: Workspace, vowels: Any, seen: Any) -> None:
    rows = [row | {"level": index % 4} for index, row in enumerate(tiny.questions(16))]
    tiny.write_dataset(workspace.data, "levels", rows)
    schedule = {"clip_schedule": "adaptive", "clip_target_fraction": 0.5}
    # Every completion solves its prompt, so the target rises by 0.2 x 3 a step; on-policy nothing is clipped.
    curriculum = {"curriculum_column": "level", "curriculum_step": 0.2, "curriculum_solved_reward": -1.0}
    options = vowels | {"dataset": "levels", "grpo_config": schedule | curriculum, "save_steps": 2}
    options |= {"save_strategy": "steps", "grpo_clip_range": 0.2}
    workspace.run(**options, max_steps=2)
    assert seen == [(0, 0.2, 0.6), (1, 0.18, 1.2)]
    workspace.run(**options, max_steps=4, resume_from_checkpoint=str(workspace.output / "checkpoint-2"))
    assert seen[2:] == [(2, 0.162, 1.8), (3, 0.1458, 2.4)]


LOSS = """
from trl_grpo_ext import LossInputs, LossOutputs

def mine(inputs: LossInputs) -> LossOutputs:
    tokens = -(inputs.advantages.unsqueeze(1) * inputs.logps * inputs.mask)
    return LossOutputs(tokens.sum() / inputs.mask.sum(), {"mine/tokens": inputs.mask.sum()})

def longest(rewards, lengths):
    return lengths.float()
"""


def test_a_loss_and_a_filter_of_a_file(workspace: Workspace, vowels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.folder)
    (workspace.folder / "losses.py").write_text(LOSS, encoding="utf-8")
    mapping = {"loss_fn": "losses.py:mine", "group_filter": "losses.py:longest", "group_filter_keep": 2}
    workspace.run(**vowels, grpo_config=mapping)
    assert all(value > 8 for value in logged(workspace, "mine/tokens"))
    assert logged(workspace, "groups/filtered_share") == [0.5, 0.5]
    for group in groups(workspace, 1):
        order = sorted(range(4), key=lambda row: -group[row]["tokens"])  # stable: the earlier of equal ones stays
        assert [group[row]["advantage"] for row in order[2:]] == [0.0, 0.0]
        assert all(row["reward"] is not None for row in group)


def test_a_kl_penalty_in_the_reward_is_in_the_advantage_only(workspace: Workspace, vowels: Any) -> None:
    mapping = {"kl_place": "reward", "kl_estimator": "k1"}
    options = vowels | {"learning_rate": 1e-2, "grpo_beta": 10.0, "grpo_scale_rewards": "none", "max_steps": 3}
    workspace.run(**options, grpo_config=mapping)
    without = [differences(group) for group in groups(workspace, 1)]
    assert max(without) < 1e-4  # the adapter is nothing yet
    assert max(differences(group) for group in groups(workspace, 3)) > 1e-3
    for row in workspace.completions():
        assert row["reward"] == pytest.approx(row["rewards"]["vowels"])


def differences(group: list[dict[str, Any]]) -> float:
    """How far the advantages are from the centred rewards."""
    mean = sum(row["reward"] for row in group) / len(group)
    return max(abs(row["reward"] - mean - row["advantage"]) for row in group)


def test_self_certainty_is_a_reward_by_name(workspace: Workspace) -> None:
    workspace.run(reward_funcs="self_certainty", max_steps=1)
    values = [row["rewards"]["self_certainty"] for row in workspace.completions()]
    assert len(set(values)) > 4 and all(value > 0 for value in values)
    assert logged(workspace, "rewards/self_certainty/mean")[0] == pytest.approx(sum(values) / 8, rel=1e-4)

"""`benchmarks/ppo_vs_grpo.py`: its PPO, and the whole script."""

import json
import subprocess
import sys

import ppo_vs_grpo
import pytest
import torch
from step_parts import models, whole_step
from step_parts.points import Point
from step_parts.ppo import ReferencePPO, generalised_advantages

from .conftest import REPOSITORY


def test_generalised_advantages_of_a_hand_computed_example():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.8]])
    last = 1.0 - 0.8
    middle = 0.8 - 0.6 + 0.95 * last
    first = 0.6 - 0.5 + 0.95 * middle
    torch.testing.assert_close(generalised_advantages(rewards, values), torch.tensor([[first, middle, last]]))


def test_the_reference_trains_policy_and_value_network(tmp_path):
    point = Point("step", "quick", 16, 8, 4)
    more = {"trainer_class": ReferencePPO, "learning_rate": 1e-3}
    trainer = models.make_trainer("stock", models.sizes("quick"), str(tmp_path), *point.shape, 4, **more)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    whole_step.step(trainer, point)
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(before[name], value)}
    assert any("value_network" in name for name in changed) and "lm_head.weight" in changed
    assert {"value_network.head.weight", "model.layers.0.mlp.up_proj.weight"} < changed


def test_the_table_says_what_is_missed():
    arms = {
        "ppo": {"peak_bytes": 1000 * 2**20, "tokens_per_second": 10.0},
        "grpo": {"peak_bytes": 700 * 2**20, "tokens_per_second": 15.0},
        "ours": {"peak_bytes": 500 * 2**20, "tokens_per_second": 25.0},
    }
    row = {"model": "toy", "prompt": 256, "completion": 128, "group": 8} | arms
    found = ppo_vs_grpo.goals([row])
    assert [(goal["value"], goal["met"]) for goal in found] == [
        *((pytest.approx(0.7), False), (1.5, False)),
        *((pytest.approx(0.5), True), (2.5, True)),
    ]
    where = {"trl": "9.9", "torch": "2", "device": "CPU", "clock": "CPU seconds"}
    text = ppo_vs_grpo.readme_table({"environment": where, "results": [row], "goals": found})
    assert "| toy (256, 128, 8) | ours | 500 | 0.50 | 25.0 | 2.50 |" in text.splitlines()


@pytest.mark.slow
def test_the_quick_setting_writes_its_goals(tmp_path):
    path = tmp_path / "ppo.json"
    command = [sys.executable, "benchmarks/ppo_vs_grpo.py", "--quick", "--json", str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    document = json.loads(path.read_text())
    assert set(document) == {"name", "environment", "results", "goals"}
    assert done.returncode == (0 if all(goal["met"] for goal in document["goals"]) else 1), done.stderr
    (row,) = document["results"]
    # Weights, gradient and two moments of the value network, whose layers are the policy's, are what GRPO has not.
    network = sum(value.numel() for value in models.make_model(models.sizes("quick")).model.parameters())
    assert row["ppo"]["peak_bytes"] - row["grpo"]["peak_bytes"] > 0.9 * 4 * 4 * network
    assert row["ours"]["peak_bytes"] < row["grpo"]["peak_bytes"]


def test_the_readme_shows_the_file_of_the_full_run():
    path = REPOSITORY / "benchmarks" / "results" / "ppo_vs_grpo.json"
    if not path.is_file():
        pytest.skip("benchmarks/results/ppo_vs_grpo.json is not in this checkout")
    assert ppo_vs_grpo.readme_table(json.loads(path.read_text())) in (REPOSITORY / "README.md").read_text()

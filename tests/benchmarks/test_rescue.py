"""`benchmarks/rescue.py`: GRPO's gradient is exactly zero, rescue learns, a wrong hint does not."""

import json
import subprocess
import sys
from functools import cache

import pytest
import rescue
import torch

from .conftest import REPOSITORY


@cache
def start():
    """The start policy of seed 0, made with fewer steps, so that it follows hints less often."""
    torch.set_num_threads(1)
    tokenizer = rescue.make_tokenizer()
    model = rescue.make_model(len(tokenizer), seed=0)
    rescue.pretrain(model, tokenizer, steps=150)
    return model


def test_the_start_policy_follows_hints_and_knows_nothing_without():
    found = rescue.measure(start(), rescue.make_tokenizer())
    assert found["plain"] < 1e-5 and found["hinted"] > 0.2


def test_the_gradient_of_grpo_is_exactly_zero_and_nothing_is_learned():
    result = rescue.train("grpo", start(), seed=0, steps=3)
    assert result["solved"] == 0 and result["gradient"] == 0.0 and result["moved"] == 0.0


@pytest.mark.parametrize("arm", ["off_policy shape", "on_policy_hinted"])
def test_rescue_learns_it(arm, monkeypatch):
    """At least one of five prompts; the full run learns all."""
    monkeypatch.setattr(rescue, "LEARNING_RATE", 1e-3)
    result = rescue.train(arm, start(), seed=0, steps=25)
    assert result["plain_end"] > 0.05, result


@pytest.mark.parametrize("arm", [arm for arm in rescue.ARMS if arm.startswith("wrong")])
def test_a_wrong_hint_teaches_nothing(arm):
    result = rescue.train(arm, start(), seed=0, steps=3)
    assert result["plain_end"] < 1e-5 and result["solved"] == 0


@pytest.mark.slow
def test_the_quick_setting_writes_its_figures(tmp_path):
    command = [sys.executable, "benchmarks/rescue.py", "--quick", "--json", str(tmp_path / "rescue.json")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    document = json.loads((tmp_path / "rescue.json").read_text())
    assert document["name"] == "rescue" and len(document["results"]) == len(rescue.ARMS)
    assert all(goal["met"] for goal in document["goals"])

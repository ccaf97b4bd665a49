"""What training leaves behind is an ordinary model: nothing of this package is in its files, or in the model."""

import json
import os
import subprocess
import sys

import torch

from tests.batching.models import SIZES, build, make
from tests.ranks import CHILD

LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    print(model.config._attn_implementation, model(torch.tensor([[3, 4, 5]])).logits.sum().item())
assert not any(name.startswith("trl_grpo_ext") for name in sys.modules)
"""


def test_the_saved_model_loads_without_this_package(tmp_path):
    trainer = make(True, build("qwen2", SIZES), tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    attention = []
    compute = trainer._compute_loss

    def seen(model, inputs):
        attention.append(model.config._attn_implementation)
        return compute(model, inputs)

    trainer._compute_loss = seen
    trainer.train()
    assert attention[-1] == "sdpa_shared_prompt"
    assert trainer.model.config._attn_implementation == "sdpa"
    trainer.save_model(str(tmp_path / "saved"))
    with torch.no_grad():
        wanted = trainer.model(torch.tensor([[3, 4, 5]])).logits.sum().item()
    folders = [tmp_path / "saved", tmp_path / "checkpoint-1"]
    for folder in folders:
        text = (folder / "config.json").read_text()
        assert "shared_prompt" not in text and json.loads(text)["model_type"] == "qwen2"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, folders)],
        **{"env": os.environ | CHILD, "cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for line in done.stdout.splitlines()[-2:]:
        kind, found = line.split()
        assert kind == "sdpa" and abs(float(found) - wanted) < 1e-3


def test_resume_goes_on_as_if_nothing_had_happened(tmp_path):
    def run(folder, steps, **settings):
        trainer = make(True, build("qwen2", SIZES), folder, max_steps=4, save_strategy="steps", save_steps=2)
        trainer.args.max_steps = steps
        trainer.train(**settings)
        return trainer

    whole = run(tmp_path, 4)
    resumed = run(tmp_path, 4, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-6, msg=name)


def test_evaluation_and_generation_while_the_shared_attention_is_set(tmp_path):
    """With evaluations between the steps, and a generation in each, parameters stay those of stock."""
    runs = []
    for extended in (False, True):
        trainer = make(extended, build("qwen2", SIZES), tmp_path, eval_strategy="steps", eval_steps=1, beta=0.0)
        trainer.train()
        runs.append((trainer, {name: value.detach() for name, value in trainer.model.named_parameters()}))
    for name, value in runs[1][1].items():
        torch.testing.assert_close(value, runs[0][1][name], rtol=1e-5, atol=1e-5, msg=name)
    losses = [[entry["eval_loss"] for entry in one.state.log_history if "eval_loss" in entry] for one, _ in runs]
    assert len(losses[0]) == 3
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-5)

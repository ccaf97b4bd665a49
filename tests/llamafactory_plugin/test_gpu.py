"""Runs that need a CUDA device: bf16, gradient checkpointing on the GPU, QLoRA. Started by the fallback command."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.test_training import vowels

__all__ = ["vowels"]

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="session")
def wider_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model(tmp_path_factory.mktemp("wider"), hidden_size=256)


def run_on_gpu(workspace: Workspace, model: Path, **options: Any) -> list[dict[str, Any]]:
    """Train 20 steps and return the log; the reward must have risen."""
    common = {"model_name_or_path": str(model), "use_cpu": False, "bf16": True, "max_steps": 20}
    common |= {"per_device_train_batch_size": 32, "grpo_group_size": 8, "learning_rate": 1e-2}
    command = [sys.executable, "-m", "llamafactory_plugin", "train", str(workspace.yaml(**common | options))]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0"}
    result = subprocess.run(command, cwd=workspace.folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    log = [entry for entry in workspace.log() if "reward" in entry]
    rewards = [entry["reward"] for entry in log]
    print(json.dumps({"options": {key: str(value) for key, value in options.items()}, "reward": rewards}))
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.05, rewards
    return log


@pytest.mark.parametrize("finetuning_type", ["lora", "full"])
@pytest.mark.parametrize("use_reentrant_gc", [True, False])
def test_bf16_with_reference(
    workspace: Workspace, vowels: Any, wider_model: Path, finetuning_type: str, use_reentrant_gc: bool
) -> None:
    options = {"reward_funcs": vowels["reward_funcs"], "finetuning_type": finetuning_type, "grpo_beta": 0.001}
    log = run_on_gpu(workspace, wider_model, use_reentrant_gc=use_reentrant_gc, **options)
    assert abs(log[0]["kl"]) < 1e-3


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("bits", [4, 8])
def test_qlora(workspace: Workspace, vowels: Any, wider_model: Path, bits: int) -> None:
    options = {"reward_funcs": vowels["reward_funcs"], "finetuning_type": "lora", "quantization_bit": bits}
    log = run_on_gpu(workspace, wider_model, grpo_beta=0.001, **options)
    assert abs(log[0]["kl"]) < 1e-3

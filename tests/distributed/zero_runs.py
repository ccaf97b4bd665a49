"""Stage grpo on two CPU ranks: by the real command, with DeepSpeed or without, and by two forked processes."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.distributed.killed_runs import started
from tests.llamafactory_plugin import tiny
from tests.ranks import CHILD, REPOSITORY

# Where the Makefile installs DeepSpeed by itself: in an environment, it changes what all other tests import.
FOLDER = os.environ.get("DEEPSPEED_FOLDER", "")
MISSING = not FOLDER and importlib.util.find_spec("deepspeed") is None
CONFIGS = REPOSITORY / "examples" / "llamafactory" / "deepspeed"
RANKS = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "WANDB_DISABLED": "true"}
REWARD = """
def vowels(completions, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]
"""


def with_deepspeed() -> dict[str, str]:
    """The environment of a process that finds DeepSpeed, and compiles nothing for it."""
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    path = [str(Path(__file__).parent / "without_compiler"), *before, *([FOLDER] if FOLDER else [])]
    return {"DS_ACCELERATOR": "cpu", "PYTHONPATH": os.pathsep.join(path)}


def build(folder: Path) -> Path:
    """Make a model, rows and a reward."""
    tiny.build_model(folder / "model")
    tiny.write_dataset(folder / "data", "words", tiny.questions(16))
    (folder / "rewards.py").write_text(REWARD)
    return folder


def settings(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    """Two steps with a KL term: a generation, a policy and a reference model are sharded alike."""
    return {
        "stage": "grpo", "do_train": True, "model_name_or_path": str(folder / "model"), "finetuning_type": "full",
        "dataset": "words", "dataset_dir": str(folder / "data"), "template": "qwen", "output_dir": str(folder / name),
        "reward_funcs": f"{folder / 'rewards.py'}:vowels", "grpo_beta": 0.1, "per_device_train_batch_size": 4,
        "grpo_group_size": 4, "grpo_max_completion_length": 6, "max_steps": 2, "logging_steps": 1,
        "save_strategy": "no", "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "bf16": False,
        "report_to": "none", "overwrite_cache": True, "grpo_disable_report": True, "grpo_disable_live": True,
    } | more  # fmt: skip


def zero(stage: int) -> dict[str, str]:
    # `use_cpu` would let DeepSpeed read a world size of 1.
    return {"deepspeed": str(CONFIGS / f"zero{stage}.json")}


def trained(folder: Path, name: str, **more: Any) -> Path:
    """Train by `llamafactory-cli train` on two ranks, and return the output folder."""
    run = settings(folder, name, **more)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(run))
    environment = os.environ | CHILD | RANKS | (with_deepspeed() if "deepspeed" in run else {})
    path = Path(sys.executable).parent
    environment["PATH"] = f"{path}{os.pathsep}{os.environ['PATH']}"
    command = [str(path / "llamafactory-cli"), "train", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    # A run that silently had one rank would have half the rows.
    assert "Initializing 2 distributed tasks" in done.stdout + done.stderr
    assert logged_steps(folder / name) == 2
    return folder / name


def logged_steps(output: Path) -> int:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return sum("num_tokens" in entry for entry in history)


def trained_by_fork(folder: Path, name: str, **more: Any) -> Path:
    """The same by LLaMA-Factory's `run_exp` on two forks of this process, which import nothing a second time."""
    run = settings(folder, name, use_cpu=True, **more)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = CHILD | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [start_rank(run, world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks] == [0, 0]
    assert logged_steps(folder / name) == 2
    return folder / name


def start_rank(run: dict[str, Any], environment: dict[str, str]) -> int:
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from llamafactory.train.tuner import run_exp

    def work() -> None:
        os.environ |= environment
        # Earlier tests of this process had one rank.
        for state in (PartialState, AcceleratorState, GradientState):
            state._reset_state()
        run_exp(dict(run))
        assert PartialState().num_processes == 2

    return started(work)


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def furthest(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference of two models' weights."""
    assert ours.keys() == theirs.keys()
    return max((value.float() - theirs[name].float()).abs().max().item() for name, value in ours.items())

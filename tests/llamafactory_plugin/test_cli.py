"""The stock `llamafactory-cli` as a user starts it: flags, YAML, overrides, torchrun, errors."""

from __future__ import annotations

from typing import Any

from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.test_training import REWARD_FILE, vowels

__all__ = ["vowels"]


def test_the_command_line_of_the_mission(workspace: Workspace) -> None:
    """Only model, dataset and output are changed; --dataset_dir, --max_steps and --use_cpu are added."""
    rows = [
        {"instruction": row["instruction"], "chosen": row["output"], "rejected": "none"} for row in tiny.questions(16)
    ]
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    tiny.write_dataset(workspace.data, "pairs", rows, ranking=True, columns=columns)
    mission = """
        --stage grpo --do_train --model_name_or_path MODEL --dataset pairs --template qwen3 --finetuning_type lora
        --output_dir out --per_device_train_batch_size 2 --gradient_accumulation_steps 8 --num_train_epochs 1
        --learning_rate 1e-5 --grpo_group_size 8 --grpo_beta 0.1 --grpo_clip_range 0.2
        --dataset_dir data --max_steps 2 --use_cpu
    """.replace("MODEL", workspace.defaults["model_name_or_path"])
    output = workspace.cli(*mission.split()).stdout
    assert "2 prompts x 8 completions per step; rewards: preference_overlap" in output
    assert "reward_funcs is not set: preference_overlap" in output
    assert "loss dapo, clip 0.2, beta 0.1" in output
    assert (workspace.output / "adapter_model.safetensors").exists()
    assert len(workspace.completions()) == 32


# Put on PYTHONPATH as sitecustomize.py: each rank writes the names of the threads it still has when it ends, into a
# file of its own (what two ranks print to one pipe can come out mixed).
THREADS_AT_EXIT = """
import atexit, os
if "LOCAL_RANK" in os.environ:
    tasks, path = "/proc/self/task", os.path.join(os.path.dirname(__file__), f"threads.{os.getpid()}")
    names = lambda: " ".join(open(f"{tasks}/{task}/comm").read().strip() for task in os.listdir(tasks))
    atexit.register(lambda: open(path, "w").write(names()))
"""


def test_yaml_two_ranks_and_a_reward_file_beside_the_yaml(workspace: Workspace) -> None:
    """torchrun's children run LLaMA-Factory's launcher as a script: the hook must be there too."""
    configs = workspace.folder / "configs"
    configs.mkdir()
    (configs / "rewards.py").write_text(REWARD_FILE, encoding="utf-8")
    path = workspace.yaml(reward_funcs="rewards.py:vowels", grpo_group_size=8, finetuning_type="full")
    path = path.rename(configs / "run.yaml")
    (configs / "sitecustomize.py").write_text(THREADS_AT_EXIT, encoding="utf-8")
    environment = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "PYTHONPATH": str(configs)}
    result = workspace.cli(path, "max_steps=3", "grpo_beta=0.05", **environment)
    threads = [path.read_text(encoding="utf-8") for path in configs.glob("threads.*")]
    assert len(threads) == 2 and all("python" in names for names in threads)
    assert not any("gloo" in names for names in threads), "a rank that ends with gloo's threads running may abort"
    assert "2 prompts x 8 completions per step; rewards: vowels" in result.stdout
    rows = workspace.completions()
    assert [row["step"] for row in rows] == [1] * 16 + [2] * 16 + [3] * 16
    for start in range(0, len(rows), 8):
        group = rows[start : start + 8]
        assert len({row["prompt"][-1]["content"] for row in group}) == 1
        assert len({row["completion"] for row in group}) > 4, "the ranks have sampled the same completions"


def test_an_error_is_one_sentence_without_a_traceback(workspace: Workspace, vowels: Any) -> None:
    result = workspace.cli(workspace.yaml(**vowels), "grpo_group_sizes=4", check=False)
    assert result.returncode != 0
    assert result.stderr.rstrip().endswith(
        "error: 'grpo_group_sizes' is not an argument of `llamafactory-cli train`; did you mean 'grpo_group_size'?"
    )
    assert "Traceback" not in result.stderr
    assert not workspace.output.exists()


def test_the_fallback_command_with_the_hook_switched_off(workspace: Workspace, vowels: Any) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "llamafactory_plugin", "train", str(workspace.yaml(**vowels))]
    import os

    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "1"}
    result = subprocess.run(command, cwd=workspace.folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert len(workspace.completions()) == 16

"""examples/accelerate: what accelerate reads, and the script on two real processes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "examples" / "accelerate"
TYPES = {"multi_gpu": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
# Starting processes must not wait for a network, and one thread each is fastest on few cores.
CHILD = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.mark.parametrize("name", TYPES)
def test_accelerate_reads_the_configuration(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type == TYPES[name] and config.num_processes == 8 and config.mixed_precision == "bf16"
    if name.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])


@pytest.mark.parametrize("name", TYPES)
def test_every_option_is_one_of_the_launcher(name: str) -> None:
    from accelerate.commands.launch import launch_command_parser

    known = {action.dest for action in launch_command_parser()._actions}
    written = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    options = {**written.get("fsdp_config", {}), **written.get("deepspeed_config", {})}
    assert set(options) <= known


def test_the_page_names_every_file() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in page for path in FOLDER.iterdir() if path.suffix in (".py", ".yaml"))


@pytest.mark.slow  # two processes that import torch, train, end, and go on
def test_the_script_on_two_processes(tmp_path: Path) -> None:
    from tests.llamafactory_plugin.tiny import build_model

    model = build_model(tmp_path / "model")
    rows = [{"question": f"{i} and {i}", "answer": f"it is {2 * i}\n#### {2 * i}"} for i in range(8)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    paths = ["--model", str(model), "--data", str(tmp_path / "data.jsonl"), "--output", str(tmp_path / "out")]
    sizes = ["--num-generations", "2", "--max-completion-length", "4", "--save-steps", "2"]
    script = [str(FOLDER / "grpo.py"), *paths, *sizes]
    launch = ["torchrun", "--standalone", "--nproc_per_node", "2", *script]
    assert "2 processes, 2 steps" in run(*launch, "--steps", "2")
    assert "2 processes, 3 steps" in run(*launch, "--steps", "3", "--resume")
    assert (tmp_path / "out" / "model.safetensors").exists()


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | CHILD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout

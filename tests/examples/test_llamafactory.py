"""The parallel examples of examples/llamafactory and examples/accelerate, up to the model, and two on two processes."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llamafactory", reason="needs LLaMA-Factory (line A)")

import yaml
from llamafactory.data.template import TEMPLATES

from llamafactory_plugin import settings
from tests.distributed.zero_runs import MISSING, with_deepspeed
from tests.llamafactory_plugin.conftest import Workspace, model, quiet_environment, workspace  # noqa: F401
from tests.llamafactory_plugin.prepared import prepare
from tests.llamafactory_plugin.tiny import write_dataset

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = {
    "qlora_grpo": "llamafactory",
    "full_zero3_grpo": "llamafactory",
    "multi_node_grpo": "llamafactory",
    "vllm_colocate_grpo": "llamafactory",
    "vllm_server_grpo": "llamafactory",
    "llamafactory": "accelerate",
}
DEEPSPEED = EXAMPLES / "llamafactory" / "deepspeed"
# One process on the CPU has neither; what reads them is below, and on GPUs.
NEEDS_MORE = ("deepspeed", "quantization_bit", "quantization_method", "quantization_type", "double_quantization")


def example(workspace: Workspace, name: str, **overrides: Any) -> dict[str, Any]:  # noqa: F811
    """An example with the local model and data, on the CPU."""
    run = yaml.safe_load((EXAMPLES / FILES[name] / f"{name}.yaml").read_text(encoding="utf-8"))
    rows = [{"question": f"What is {number} plus 1?", "answer": f"It is.\n#### {number + 1}"} for number in range(32)]
    write_dataset(workspace.data, "gsm8k", rows, columns={"prompt": "question", "response": "answer"})
    places = {"model_name_or_path": workspace.defaults["model_name_or_path"], "dataset_dir": str(workspace.data)}
    places |= {"output_dir": str(workspace.output), "use_cpu": True, "bf16": False, "overwrite_cache": True}
    return {key: value for key, value in (run | places | overrides).items() if value is not None}


@pytest.fixture
def plain_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaMA-Factory writes `default_system` into its template object, which later tests in this process would meet."""
    monkeypatch.setitem(TEMPLATES, "qwen3", copy.deepcopy(TEMPLATES["qwen3"]))


@pytest.mark.parametrize("name", FILES)
def test_the_plugin_takes_it(
    name: str,
    workspace: Workspace,  # noqa: F811
    plain_template: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "check_vllm", lambda run: None)
    given = example(workspace, name, **dict.fromkeys(NEEDS_MORE))
    # Two processes more would be needed for a whole generation batch of these few rows.
    ready = prepare(given)
    assert ready.config.num_generations == given["grpo_group_size"]
    assert ready.config.use_vllm is given.get("grpo_use_vllm", False)
    assert ready.config.vllm_mode == given.get("grpo_config", {}).get("vllm_mode", ready.config.vllm_mode)


def test_every_key_of_the_quantised_one_is_known() -> None:
    from llamafactory.hparams import ModelArguments

    given = yaml.safe_load((EXAMPLES / "llamafactory" / "qlora_grpo.yaml").read_text(encoding="utf-8"))
    assert set(NEEDS_MORE[1:]) < set(given)
    arguments = ModelArguments(model_name_or_path="m", **{key: given[key] for key in NEEDS_MORE[1:]})
    assert arguments.quantization_bit == 4


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_files_leave_sizes_to_the_trainer(stage: int) -> None:
    config = json.loads((DEEPSPEED / f"zero{stage}.json").read_text(encoding="utf-8"))
    assert config["zero_optimization"]["stage"] == stage
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert {config[name] for name in sizes} == {"auto"}


def test_the_named_deepspeed_file_is_there() -> None:
    given = yaml.safe_load((EXAMPLES / "llamafactory" / "full_zero3_grpo.yaml").read_text(encoding="utf-8"))
    assert (EXAMPLES.parent / given["deepspeed"]).is_file()


def test_the_page_names_every_file() -> None:
    page = (EXAMPLES / "llamafactory" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in page for path in (EXAMPLES / "llamafactory").glob("*.yaml"))


@pytest.mark.slow  # llamafactory-cli, torchrun and two processes
@pytest.mark.parametrize("launcher", ["llamafactory-cli", "accelerate"])
def test_on_two_processes(launcher: str, workspace: Workspace) -> None:  # noqa: F811
    name = "multi_node_grpo" if launcher == "llamafactory-cli" else "llamafactory"
    sizes = {"max_steps": 2, "grpo_max_completion_length": 8, "save_steps": 2, "grpo_disable_report": True}
    given = example(workspace, name, gradient_accumulation_steps=1, **sizes)
    path = workspace.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    if launcher == "llamafactory-cli":
        workspace.cli(str(path), FORCE_TORCHRUN="1", NPROC_PER_NODE="2", NNODES="1", NODE_RANK="0")
    else:
        run_module(workspace, path)
    # 2 steps x 2 processes x 8 completions: a single process would have written half of them.
    assert len(workspace.completions()) == 32
    assert (workspace.output / "checkpoint-2" / "trainer_state.json").exists()


def run_module(workspace: Workspace, path: Path) -> None:  # noqa: F811
    """What `accelerate launch -m llamafactory.launcher` starts on each GPU; on the CPU that is torchrun's to do."""
    import subprocess

    command = ["torchrun", "--standalone", "--nproc_per_node", "2", "-m", "llamafactory.launcher", str(path)]
    done = subprocess.run(command, cwd=workspace.folder, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.skipif(MISSING, reason="needs deepspeed (the extra [deepspeed], or DEEPSPEED_FOLDER)")
def test_zero3_on_two_processes(workspace: Workspace) -> None:  # noqa: F811
    sizes = {"max_steps": 2, "grpo_max_completion_length": 8, "save_strategy": "no", "grpo_disable_report": True}
    # `use_cpu` would let DeepSpeed read a world size of 1.
    config = {"deepspeed": str(DEEPSPEED / "zero3.json"), "use_cpu": None}
    given = example(workspace, "full_zero3_grpo", gradient_accumulation_steps=1, **sizes, **config)
    path = workspace.folder / "zero3.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    workspace.cli(str(path), FORCE_TORCHRUN="1", NPROC_PER_NODE="2", **with_deepspeed())
    assert len(workspace.completions()) == 32

"""A real pretrained model (stories260K) on real data: train, save, resume, evaluate."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.llamafactory_plugin.conftest import Workspace

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
MODEL = SHARED / "models" / "stories260K"
DEMO = SHARED / "data" / "llamafactory_demo"
GSM8K = SHARED / "data" / "gsm8k"

pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason="needs ../shared/models/stories260K and ../shared/data")


def real_run(workspace: Workspace, dataset: str, dataset_dir: Path, **options: Any) -> dict[str, Any]:
    return (
        workspace.arguments(
            model_name_or_path=str(MODEL),
            dataset=dataset,
            dataset_dir=str(dataset_dir),
            template="alpaca",
            cutoff_len=448,
            max_samples=300,
            grpo_max_completion_length=32,
            grpo_group_size=8,
            per_device_train_batch_size=16,
            max_steps=20,
            save_strategy="steps",
            save_steps=10,
            val_size=4,
            do_eval=True,
            per_device_eval_batch_size=16,
        )
        | options
    )


@pytest.fixture
def gsm8k(workspace: Workspace) -> Path:
    path = ROOT / "examples" / "llamafactory" / "prepare_gsm8k.py"
    spec = importlib.util.spec_from_file_location("prepare_gsm8k", path)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.prepare(GSM8K, workspace.data)
    return workspace.data


def check(workspace: Workspace, rows_per_step: int, steps: int = 20) -> None:
    state = json.loads((workspace.output / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == steps
    assert len(workspace.completions()) == steps * rows_per_step
    assert (workspace.output / f"checkpoint-{steps}").is_dir()
    metrics = json.loads((workspace.output / "eval_results.json").read_text(encoding="utf-8"))
    assert "eval_reward" in metrics


def train_and_resume(
    workspace: Workspace, run: dict[str, Any], rows_per_step: int, steps: int
) -> list[dict[str, Any]]:
    """Train, then resume from the middle: the completions of the first half must stay as they are."""
    workspace.run(**run)
    check(workspace, rows_per_step, steps)
    first = workspace.completions()
    workspace.run(**run, resume_from_checkpoint=str(workspace.output / f"checkpoint-{steps // 2}"))
    check(workspace, rows_per_step, steps)
    kept = rows_per_step * steps // 2
    assert workspace.completions()[:kept] == first[:kept]
    return first


@pytest.mark.parametrize(
    ("finetuning_type", "steps"),
    [
        ("lora", 2),
        pytest.param("lora", 20, marks=pytest.mark.slow),
        pytest.param("full", 20, marks=pytest.mark.slow),
    ],
)
def test_gsm8k_trains_resumes_and_evaluates(
    workspace: Workspace, gsm8k: Path, finetuning_type: str, steps: int
) -> None:
    options = {"finetuning_type": finetuning_type, "max_steps": steps, "save_steps": steps // 2}
    run = real_run(workspace, "gsm8k", gsm8k, reward_funcs="gsm8k_number", **options)
    rows = train_and_resume(workspace, run, rows_per_step=16, steps=steps)
    assert all("####" in row["solution"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("finetuning_type", ["lora", "full"])
@pytest.mark.parametrize("dataset", ["alpaca_en_demo", "glaive_toolcall_en_demo"])
def test_llamafactorys_demo_sets(workspace: Workspace, dataset: str, finetuning_type: str) -> None:
    options: dict[str, Any] = {
        "reward_funcs": "exact_match",
        "finetuning_type": finetuning_type,
        "max_steps": 20,
        "save_steps": 10,
    }
    if dataset == "glaive_toolcall_en_demo":
        # Its tool descriptions fill the 512 tokens of this model's context: longer positions, meaningless but trainable.
        options |= {"cutoff_len": 2048, "per_device_train_batch_size": 8}
    run = real_run(workspace, dataset, DEMO, **options)
    train_and_resume(workspace, run, rows_per_step=options.get("per_device_train_batch_size", 16), steps=20)


@pytest.mark.slow
def test_gsm8k_on_two_ranks(workspace: Workspace, gsm8k: Path) -> None:
    run = real_run(workspace, "gsm8k", gsm8k, reward_funcs="gsm8k_number", per_device_train_batch_size=8)
    path = workspace.folder / "run.yaml"
    path.write_text(json.dumps(run), encoding="utf-8")
    workspace.cli(path, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    check(workspace, 16)

"""examples/llamafactory runs as printed, but for the model, the sizes and the device."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from llamafactory.data.template import TEMPLATES

from tests.llamafactory_plugin.conftest import Workspace

EXAMPLES = Path(__file__).parents[2] / "examples" / "llamafactory"


def test_qwen3_lora_grpo(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    # LLaMA-Factory writes `default_system` into its template object, which later tests in this process would meet.
    monkeypatch.setitem(TEMPLATES, "qwen3", copy.deepcopy(TEMPLATES["qwen3"]))
    source = workspace.folder / "source"
    source.mkdir()
    rows = [{"question": f"What is {number} plus 1?", "answer": f"It is.\n#### {number + 1}"} for number in range(12)]
    for split in ("train", "test"):
        (source / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    script = [sys.executable, str(EXAMPLES / "prepare_gsm8k.py"), "--source", str(source), "--output", "data"]
    subprocess.run(script, cwd=workspace.folder, check=True)
    run = yaml.safe_load((EXAMPLES / "qwen3_lora_grpo.yaml").read_text(encoding="utf-8"))
    tiny = {"model_name_or_path": workspace.defaults["model_name_or_path"], "use_cpu": True, "bf16": False}
    sizes = {"gradient_accumulation_steps": 1, "grpo_max_completion_length": 8, "max_steps": 2, "val_size": 2}
    places = {"dataset_dir": str(workspace.data), "output_dir": str(workspace.output), "eval_steps": 2}
    workspace.defaults = {}
    workspace.run(**run | tiny | sizes | places | {"preprocessing_num_workers": None})
    rows = workspace.completions()
    assert len(rows) == 16 and "####" in rows[0]["solution"]
    assert "plus 1?" in rows[0]["prompt"][-1]["content"]
    evaluations = workspace.completions("eval_completions.jsonl")
    assert len(evaluations) == 2 * 2 * run["grpo_group_size"]  # after step 2, and at the end
    assert (workspace.output / "adapter_model.safetensors").exists()

"""Other stages run LLaMA-Factory's own code: the same losses with the plugin and without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace

SCRIPT = """
import json, sys
from llamafactory.train.tuner import run_exp
for arguments in json.load(open(sys.argv.pop(1))):
    run_exp(arguments)
"""


def losses(workspace: Workspace, runs: list[dict[str, Any]], **environment: str) -> dict[str, list[float]]:
    (workspace.folder / "runs.json").write_text(json.dumps(runs), encoding="utf-8")
    command = [sys.executable, "-c", SCRIPT, "runs.json"]
    env = {**os.environ, **environment}
    result = subprocess.run(command, cwd=workspace.folder, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    histories = {}
    for run in runs:
        state = json.loads((Path(run["output_dir"]) / "trainer_state.json").read_text(encoding="utf-8"))
        histories[run["stage"]] = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    return histories


def test_sft_and_dpo_have_the_same_losses_with_and_without_the_plugin(workspace: Workspace) -> None:
    rows = [
        {"instruction": row["instruction"], "chosen": row["output"], "rejected": "none"} for row in tiny.questions(16)
    ]
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    tiny.write_dataset(workspace.data, "pairs", rows, ranking=True, columns=columns)
    columns = {"prompt": "instruction", "response": "output"}
    tiny.write_dataset(workspace.data, "words", tiny.questions(16), columns=columns)
    common = {name: value for name, value in workspace.defaults.items() if not name.startswith("grpo_")}
    common |= {"max_steps": 4, "learning_rate": 1e-3}
    results = []
    for switch in ("1", "0"):
        outputs = {stage: str(workspace.folder / f"{stage}-{switch}") for stage in ("sft", "dpo")}
        runs = [
            common | {"stage": "sft", "output_dir": outputs["sft"]},
            common | {"stage": "dpo", "output_dir": outputs["dpo"], "dataset": "pairs"},
        ]
        results.append(losses(workspace, runs, LLAMAFACTORY_GRPO=switch))
    with_plugin, without_plugin = results
    assert [len(values) for values in with_plugin.values()] == [4, 4]
    assert len(set(with_plugin["sft"])) > 1 and len(set(with_plugin["dpo"])) > 1
    assert with_plugin == without_plugin

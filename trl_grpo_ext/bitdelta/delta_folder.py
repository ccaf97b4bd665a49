"""The folder of a delta: the files of its parts, its table, its configuration and model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from trl_grpo_ext.bitdelta.errors import BitDeltaError
from trl_grpo_ext.bitdelta.report import DeltaReport, model_card
from trl_grpo_ext.bitdelta.table import CONFIG_FILE, STEM, Table
from trl_grpo_ext.bitdelta.writing import Spool, shard_names, shards, write_safetensors

# Beside the weights: what a tokenizer and generation need, and nothing that a training run leaves.
COPIED = tuple(
    "generation_config.json tokenizer vocab merges.txt special_tokens_map.json added_tokens.json chat_template "
    "preprocessor_config.json processor_config.json spiece.model".split()
)


def write_parts(work: Path, table: Table, spool: Spool, shard_size: int) -> None:
    """Write the files of the parts, and enter into the table which file has which."""
    groups, owners = [], []
    for name, entry in table.tensors.items():
        if entry.parts:
            groups.append([spool.plan[f"{name}.{part}"] for part in entry.parts])
            owners.append((entry, groups[-1][0]))
    found = shards(groups, shard_size)
    files = dict(zip(shard_names(STEM, len(found)), found, strict=True)) if groups else {}
    where = {item: file for file, plan in files.items() for item in plan}
    for entry, item in owners:
        entry.file = where[item]
    for file, plan in files.items():
        write_safetensors(work / file, plan, spool.copy)


def write_rest(work: Path, report: DeltaReport, beside: Path | None) -> None:
    """Write configuration, table and model card, and copy what stands beside the fine-tuned weights."""
    table = report.table
    model = {
        "model_type": "bitdelta",
        "architectures": table.model_config.get("architectures"),
        "base_model_name_or_path": table.base["id"],
        "base_revision": table.base["revision"],
        "model_config": table.model_config,
    }
    write_report(work, report)
    (work / "config.json").write_text(json.dumps(model, indent=2) + "\n", encoding="utf-8")
    if beside is not None:
        copy_beside(beside, work)


def write_report(work: Path, report: DeltaReport) -> None:
    """Write the table and the model card."""
    text = json.dumps(report.table.to_json(), indent=1, allow_nan=False)
    (work / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    (work / "README.md").write_text(model_card(report), encoding="utf-8")


def copy_beside(folder: Path, target: Path) -> None:
    """Copy the tokenizer's and the generation's files."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name.startswith(COPIED):
            try:
                shutil.copyfile(file, target / file.name)
            except shutil.SameFileError as error:
                raise BitDeltaError(f"{target} is the checkpoint itself.") from error

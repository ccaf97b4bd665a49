"""What a training run has left in its output folder. Standard library only."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Entry = dict[str, Any]

COMPLETIONS, SAMPLES, HEALTH, STATE, SETTINGS = (
    "completions.jsonl",
    "evaluation_samples.jsonl",
    "health.jsonl",
    "trainer_state.json",
    "run_settings.json",
)

# Of the parts of `run_settings.json` the one that is no settings.
VERSIONS = "versions"


class RunError(ValueError):
    """A folder that no report can be made of; the message says what is missing."""


@dataclass(frozen=True)
class Run:
    """A run as it is reported.

    Attributes:
        folder: its output folder.
        state: `trainer_state.json`, of the folder or of its last checkpoint.
        history: log entries, by step.
        findings: lines of `health.jsonl`.
        settings: title -> name -> value, of `run_settings.json`, `adapter_config.json`, `config.json`, and the results.
        versions: of the libraries, as the run has written them, or else as its model card lists them.
    """

    folder: Path
    state: Entry
    history: list[Entry]
    findings: list[Entry] = field(default_factory=list)
    settings: dict[str, Entry] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def json_lines(path: Path) -> Iterator[Entry]:
    """Yield the objects of a JSON Lines file; lines that a crash has torn are left out. Nothing without a file."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def _state_path(folder: Path) -> Path | None:
    if (folder / STATE).is_file():
        return folder / STATE
    numbered = [
        (int(path.parent.name.rsplit("-", 1)[1]), path)
        for path in folder.glob(f"checkpoint-*/{STATE}")
        if path.parent.name.rsplit("-", 1)[1].isdigit()
    ]
    return max(numbered)[1] if numbered else None


def _settings(folder: Path) -> dict[str, Entry]:
    found = {}
    for name in ("all_results.json", "adapter_config.json", "config.json"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            found[name] = {key: value for key, value in content.items() if value is not None}
    if (folder / SETTINGS).is_file():
        found |= json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    return found


def write_settings(folder: str | os.PathLike[str], settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep the resolved settings of a run for its report, by title; what JSON has no word for is kept as text."""
    path = Path(folder) / SETTINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(settings, default=str, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _versions(folder: Path) -> dict[str, str]:
    """The lines `- TRL: 0.24.0` and `- Pytorch 2.12.1` below "Framework versions" of a model card."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    _, _, part = text.partition("Framework versions")
    return dict(re.findall(r"^- ([A-Za-z]+):? ([0-9][^\s]*)", part.split("\n#")[0], re.MULTILINE))


def load_run(folder: str | Path) -> Run:
    """Return what a folder holds.

    Raises:
        RunError: it is no folder, or holds no `trainer_state.json`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder; name the output folder of a training run.")
    path = _state_path(folder)
    if path is None:
        raise RunError(f"{folder} holds no {STATE}, nor does a checkpoint in it: the run has saved nothing yet.")
    state = json.loads(path.read_text(encoding="utf-8"))
    history = [entry for entry in state.get("log_history", []) if "step" in entry]
    findings, settings = list(json_lines(folder / HEALTH)), _settings(folder)
    versions = settings.pop(VERSIONS, None) or _versions(folder)
    return Run(folder, state, history, findings, settings, versions)

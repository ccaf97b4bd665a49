"""`completions.jsonl`: every completion with its rewards and advantage, one JSON object a line, written by rank 0."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Valid inside a JSON string, but `str.splitlines` breaks a line at them.
_LINE_BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
TRAIN_FILE, EVAL_FILE = "completions.jsonl", "eval_completions.jsonl"


def completion_rows(
    step: int,
    rows: Sequence[Mapping[str, Any]],
    rewards: Mapping[str, Sequence[float]],
    totals: Sequence[float],
    advantages: Sequence[float],
) -> list[dict[str, Any]]:
    """One record per completion; a reward that is NaN (the function returned None) becomes null."""
    return [
        {
            "step": step,
            **row,
            "rewards": {name: number_or_none(values[index]) for name, values in rewards.items()},
            "reward": number_or_none(totals[index]),
            "advantage": number_or_none(advantages[index]),
        }
        for index, row in enumerate(rows)
    ]


def number_or_none(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def json_line(record: Mapping[str, Any]) -> str:
    """One line of a JSON Lines file, readable in any script, and one line for every reader."""
    return json.dumps(record, ensure_ascii=False).translate(_LINE_BREAKS) + "\n"


class CompletionLog:
    """Appends records to the files of one output folder."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def start(self, step: int, *, is_training: bool) -> None:
        """Begin a run at optimizer step `step`: keep the records of earlier steps (resume), drop all others.

        A run that only evaluates begins its own file and leaves that of the training alone.
        """
        for name in (TRAIN_FILE, EVAL_FILE) if is_training else (EVAL_FILE,):
            path = self.folder / name
            if path.exists():
                _rewrite(path, (line for line in _lines(path) if step > 0 and _step_of(line) <= step))

    def write(self, records: Iterable[Mapping[str, Any]], *, is_training: bool) -> None:
        """Append records; the file is complete after every call."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / (TRAIN_FILE if is_training else EVAL_FILE), "a", encoding="utf-8") as file:
            file.writelines(json_line(record) for record in records)


def _lines(path: Path) -> list[str]:
    with open(path, encoding="utf-8") as file:
        return file.readlines()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # the last line of a killed run may be half-written


def _rewrite(path: Path, lines: Iterable[str]) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(lines)
    os.replace(temporary, path)

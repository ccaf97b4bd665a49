"""Data as a file describes them: JSON or JSON Lines, or a data set of Hugging Face on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_grpo_ext.training_free.model_settings import beside
from trl_grpo_ext.training_free.typed_values import checked_values

Row = dict[str, Any]


@dataclass(frozen=True)
class DataSettings:
    """Where rows come from.

    Args:
        path: a .json file with a list of objects, a .jsonl file with one object a line, or a folder that
            `datasets.Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.
        split: of a folder with several.
        columns: names that the run needs, by the columns of the data that take them: {"solution": "answer"}. Columns
            that are not named keep their names.
        max_samples: the first rows only.
    """

    path: str
    split: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    max_samples: int | None = None

    def rows(self, where: str) -> list[Row]:
        """Return the rows, under the run's names.

        Args:
            where: "dataset" or "held_out", for messages.

        Raises:
            ValueError: no such file, rows that are none, or a column that they lack.
        """
        rows = [self._named(row, number, where) for number, row in enumerate(self._read(where))]
        if not rows:
            raise ValueError(f"{where}.path: {self.path} has no rows.")
        return rows

    def _read(self, where: str) -> Iterable[Any]:
        path = Path(self.path)
        if os.path.isdir(path):
            rows = _from_folder(path, self.split, where)
        elif self.split is not None:
            raise ValueError(f"{where}.split is for folders, and {path} is none; remove it.")
        else:
            rows = read_json_rows(path, f"{where}.path")
        return rows[: self.max_samples]

    def _named(self, row: Any, number: int, where: str) -> Row:
        if not isinstance(row, Mapping):
            raise ValueError(
                f"{where}.path: row {number} of {self.path} must be an object with columns, not {row!r:.100}."
            )
        missing = next((name for name in self.columns.values() if name not in row), None)
        if missing is not None:
            raise ValueError(f"{where}.columns: row {number} has no column {missing!r}; it has {', '.join(row)}.")
        kept = {name: value for name, value in row.items() if name not in self.columns.values()}
        return kept | {name: row[column] for name, column in self.columns.items()}


def data_settings(values: Any, where: str, folder: Path) -> DataSettings:
    """Return where rows come from, checked but for the rows themselves.

    Args:
        values: a path, or a mapping of the settings.
        where: "dataset" or "held_out", for messages.
        folder: where a relative path is looked up first, before the working directory.

    Raises:
        ValueError: naming the key.
    """
    given = checked_values(DataSettings, {"path": values} if isinstance(values, str) else values, where)
    settings = DataSettings(**given | {"path": str(beside(given["path"], folder))})
    if not os.path.exists(settings.path):
        raise ValueError(
            f"{where}.path: there is no {given['path']}, neither beside the file nor in the working directory."
        )
    wrong = next((name for name, column in settings.columns.items() if not isinstance(column, str)), None)
    if wrong is not None:
        raise ValueError(f"{where}.columns.{wrong} must be the name of a column, not {settings.columns[wrong]!r}.")
    if settings.max_samples is not None and settings.max_samples < 1:
        raise ValueError(
            f"{where}.max_samples must be at least 1, not {settings.max_samples}; remove it for all rows."
        )
    return settings


def read_json_rows(path: Path, where: str) -> list[Any]:
    """Return the elements of a JSON list, or of JSON Lines.

    Raises:
        ValueError: no UTF-8, or neither of the two.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: {path} can't be read ({error}).") from error
    return json_rows(text, f"{where}: {path}")


def json_rows(text: str, name: str) -> list[Any]:
    """Return the elements of a JSON list, or of JSON Lines; empty lines are left out.

    Raises:
        ValueError: with the number of the first wrong line.
    """
    if text.lstrip().startswith("["):
        try:
            return list(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} is no JSON list ({error}).") from error
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{name}, line {number}: no JSON ({error}); write one object a line, or a list."
            ) from error
    return rows


def _from_folder(path: Path, split: str | None, where: str) -> list[Any]:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{where}.path: {path} is no data set that save_to_disk wrote ({error}); give one, or a .json or .jsonl file."
        ) from error
    if not isinstance(found, DatasetDict):
        if split is not None:
            raise ValueError(f"{where}.split is {split!r}, but {path} holds one data set without splits; remove it.")
        return found.to_list()
    if split not in found:
        raise ValueError(f"{where}.split must be one of {', '.join(found)}, the splits of {path}, not {split!r}.")
    return found[split].to_list()

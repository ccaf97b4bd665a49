"""The run's journal: what was decided for each step, before the library is changed. Standard library only."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_grpo_ext.training_free.cache import content_key, open_database
from trl_grpo_ext.training_free.config import differences

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS steps (
  step INTEGER PRIMARY KEY, base INTEGER NOT NULL, record TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0
);
"""


class RunChangedError(ValueError):
    """The run in this folder was started with other settings, models, rewards or data, or its library was changed."""


class RunBusyError(RuntimeError):
    """Another process is at work in the folder of the run."""


def _locked(path: Path) -> sqlite3.Connection:
    """A lock that its process can't outlive: an open transaction in a file of its own."""
    connection = sqlite3.connect(path.with_name(path.name + ".lock"), timeout=0, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        connection.close()
        raise RunBusyError(
            f"{path}: another process is training in this folder ({error}). Wait for it, or give another output_dir."
        ) from error
    return connection


class RunState:
    """The journal of one run.

    A step's record is written first, with the version of the library that it is for; then the library takes it over in
    one transaction; then the step is marked done. A process that is killed in between finds out which of the three
    happened.

    Args:
        path: the file, made if it is missing; None keeps everything in memory.

    Raises:
        RunBusyError: another process has it open.
        ValueError: the file is not a database.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.name = str(path or "run in memory")
        self._lock = None if path is None else _locked(path)
        try:
            # A step that the library has taken over and the journal has forgotten would be done twice.
            self._connection = open_database(path, _TABLES, "FULL")
        except BaseException:
            self._unlock()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _meta(self, key: str) -> Any:
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def _set_meta(self, key: str, value: Any) -> None:
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def begin(self, settings: Mapping[str, Any]) -> str:
        """Start the run, or continue one of the same settings; returns the fingerprint.

        Raises:
            RunChangedError: it was started with others; the message says which, before and now.
        """
        new = json.loads(json.dumps(settings, sort_keys=True))
        old = self._meta("settings")
        if old is None:
            self._set_meta("settings", new)
        elif old != new:
            lines = "\n  ".join(differences(old, new))
            raise RunChangedError(
                f"{self.name} holds a run that was started otherwise:\n  {lines}\nGive the old values to resume it, or "
                "another output_dir to start a new run; only the budget and max_attempts may change."
            )
        return content_key(new)[:16]

    @property
    def finished(self) -> bool:
        """Whether a `train` call has come to its end."""
        return bool(self._meta("finished"))

    @finished.setter
    def finished(self, value: bool) -> None:
        self._set_meta("finished", value)

    def load(self, step: int) -> tuple[int, dict[str, Any], bool] | None:
        """Return (version of the library it is for, record, whether it is done) of a step; None before it is decided."""
        row = self._connection.execute("SELECT base, record, done FROM steps WHERE step = ?", (step,)).fetchone()
        return None if row is None else (row[0], json.loads(row[1]), bool(row[2]))

    def save(self, step: int, base: int, record: Mapping[str, Any]) -> None:
        """Write the record of a step that is decided."""
        self._connection.execute(
            "INSERT INTO steps (step, base, record) VALUES (?, ?, ?)", (step, base, json.dumps(record))
        )

    def mark_done(self, step: int) -> None:
        """Note that the library has taken a step over."""
        self._connection.execute("UPDATE steps SET done = 1 WHERE step = ?", (step,))

    def records(self) -> list[dict[str, Any]]:
        """Return the records of the steps that are done, in order."""
        rows = self._connection.execute("SELECT record FROM steps WHERE done ORDER BY step").fetchall()
        return [json.loads(record) for (record,) in rows]

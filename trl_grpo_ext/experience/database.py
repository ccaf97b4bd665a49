"""One SQLite connection: queries, and transactions that are versions. Standard library only."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import Any

from trl_grpo_ext.experience.errors import ExperienceError, meaning, translated
from trl_grpo_ext.experience.rows import Change, Counters
from trl_grpo_ext.experience.schema import connect

_ADD_VERSION = "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ADD_OPERATION = "INSERT INTO operations (version, kind, record, before, after) VALUES (?, ?, ?, ?, ?)"


class Database:
    """Queries and transactions of one library file. Use `ExperienceStore`.

    Args:
        path: the file; None for a library in memory.
        durability: "normal" or "full"; see `schema.connect`.
        timeout: seconds to wait for another writer.
        create: whether a missing file is made.

    Raises:
        ExperienceError: see `schema.connect`.
    """

    def __init__(self, path: Path | None, durability: str, timeout: float, create: bool) -> None:
        self.name = str(path or "experience library in memory")
        self.connection = connect(path, durability, timeout, create)
        self._lock = threading.RLock()
        self._change: Change | None = None

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self.connection.close()

    @property
    def writing(self) -> bool:
        """Whether a transaction is open."""
        return self._change is not None

    def replace(self, source: sqlite3.Connection) -> None:
        """Become a copy of another library; what snapshots of this one know of their target stays."""
        kept = {key: self.meta(key) for key in ("snapshot", "planned")}
        with self._lock, translated(self.name):
            source.backup(self.connection)
            self.connection.execute("DELETE FROM meta WHERE key = 'published'")
        for key, value in kept.items():
            if value is not None:
                self.set_meta(key, value)
        self._reset()

    def _reset(self) -> None:
        """Called when what is remembered of the tables may be wrong."""

    def copy_to(self, target: sqlite3.Connection) -> None:
        """Copy the library, as of its last version, into another database, which can be used without a log file."""
        with self._lock, translated(self.name):
            if self._change is not None:
                raise ExperienceError(f"{self.name}: end the open transaction before the library is copied.")
            self.connection.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self._lock:
            try:
                return self.connection.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise meaning(error, self.name) from error

    def value(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Return the first column of the first row, or None."""
        found = self.rows(statement, values)
        return found[0][0] if found else None

    @property
    def version(self) -> int:
        """Number of transactions that changed something."""
        return int(self.value("SELECT max(version) FROM versions"))

    @property
    def horizon(self) -> int:
        """The earliest version that the history reaches back to."""
        return int(self.meta("horizon") or 0)

    def stamp(self, version: int) -> tuple[Any, ...] | None:
        """Return cause, step and time of a version; stays when what it did is forgotten. None: no such version."""
        found = self.rows("SELECT cause, step, created FROM versions WHERE version = ?", (version,))
        return found[0] if found else None

    def counters(self, version: int | None = None) -> Counters:
        """Return the counts of a version, the last one by default."""
        columns = "SELECT rollouts, stored, pruned, episodes, lessons FROM versions WHERE version = ?"
        return Counters(*self.rows(columns, (self.version if version is None else version,))[0])

    def meta(self, key: str) -> str | None:
        """Return a setting that was stored with `set_meta`."""
        return self.value("SELECT value FROM meta WHERE key = ?", (key,))

    def set_meta(self, key: str, value: str) -> None:
        """Store a setting."""
        self.rows(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
        )

    @contextmanager
    def write(self, cause: str, step: int | None = None) -> Iterator[Change]:
        """One transaction, or a part of the one that is open: whole or not at all, whatever is raised inside."""
        with self._lock, translated(self.name):
            if self._change is not None:
                with self._part(self._change):
                    yield self._change
                return
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                last = self.version
                self._change = Change(last + 1, self.counters(last), cause, step)
                yield self._change
                self._finish(self._change)
                self.connection.execute("COMMIT")
            except BaseException:
                self._abandon()
                raise
            finally:
                self._change = None
                self._end()

    def _end(self) -> None:
        """Called when a transaction is over."""

    @contextmanager
    def _part(self, change: Change) -> Iterator[None]:
        try:
            yield
        except BaseException:
            change.broken = True
            raise

    def _abandon(self) -> None:
        # SQLite has already rolled back when the disk is full.
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def _finish(self, change: Change) -> None:
        if change.broken:
            raise ExperienceError(f"{self.name}: a part of this transaction failed, so none of it was stored.")
        if change.touched:
            row = (change.version, change.cause, change.step, time(), *change.counters.values())
            self.connection.execute(_ADD_VERSION, row)
            rows = [(change.version, *operation) for operation in change.operations]
            self.connection.executemany(_ADD_OPERATION, rows)

"""The file below a library: opened with its configuration, written in transactions, copied whole, kept in step."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trl_grpo_ext.experience import forgetting, replication
from trl_grpo_ext.experience.config import ExperienceConfig
from trl_grpo_ext.experience.errors import (
    ConfigChangedError,
    DiskFullError,
    LibraryDamagedError,
    LibraryLockedError,
    translated,
)
from trl_grpo_ext.experience.replication import Changes
from trl_grpo_ext.experience.rows import Change
from trl_grpo_ext.experience.schema import connect_read_only
from trl_grpo_ext.experience.snapshots import SnapshotFile, on_network, write_snapshot
from trl_grpo_ext.experience.store import ExperienceStore

STORAGE = ("auto", "local", "snapshot")


def _snapshot_file(path: Path | None, storage: str) -> SnapshotFile | None:
    if storage not in STORAGE:
        raise ValueError(f"storage must be one of {', '.join(STORAGE)}, not {storage!r}.")
    if storage == "snapshot" and path is None:
        raise ValueError('storage="snapshot" needs a path to write the snapshots to.')
    wanted = path is not None and (storage == "snapshot" or (storage == "auto" and on_network(path.absolute())))
    return SnapshotFile(path) if wanted and path is not None else None


def _config_of(source: sqlite3.Connection, name: str) -> ExperienceConfig:
    with translated(name):
        row = source.execute("SELECT value FROM meta WHERE key = 'config'").fetchone()
    try:
        return ExperienceConfig.from_mapping(json.loads(row[0] if row else "{}"))
    except (TypeError, ValueError) as error:
        raise LibraryDamagedError(f"{name}: the settings of the file are damaged ({error}).") from error


class LibraryFile:
    """What of a library has to do with its file. Use `ExperienceLibrary`.

    Args:
        path: the SQLite file, made if it is missing; None keeps the library in memory.
        config: None takes the one that the file was made with, or the defaults.
        reconfigure: whether a file made with another configuration takes the new one; refused otherwise.
        durability: "normal": a commit outlives a killed process; "full": a power cut as well, at a third of the speed.
        timeout: seconds to wait for another process that writes; 30 by default.
        storage: "local" works on the file itself; "snapshot" on a copy in the temporary folder, of which snapshots
            are put in place at `path`; "auto" takes "snapshot" where `path` is on a network file system.
        snapshot_every: seconds between two snapshots; one is always written by `flush` and `close`. 60 by default.
        create: False refuses a missing file.

    Raises:
        ValueError: an unknown durability or storage.
        ConfigChangedError: another configuration than the file's, without `reconfigure`.
        ExperienceError: the file can't be used: missing, locked, truncated, foreign.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        config: ExperienceConfig | None = None,
        *,
        reconfigure: bool = False,
        durability: str = "normal",
        timeout: float = 30.0,
        storage: str = "auto",
        snapshot_every: float = 60.0,
        create: bool = True,
    ) -> None:
        target = None if path is None else Path(path)
        self._snapshots = _snapshot_file(target, storage)
        self._snapshot_every, self._last_snapshot = snapshot_every, time.monotonic()
        local = self._snapshots.prepare() if self._snapshots else target
        self._store = ExperienceStore(local, durability, timeout, create)
        try:
            self.config = self._configure(config, reconfigure)
        except BaseException:
            self._store.close()
            raise

    def _configure(self, config: ExperienceConfig | None, reconfigure: bool) -> ExperienceConfig:
        known = self._store.meta("config")
        if known is not None:
            old = ExperienceConfig.from_mapping(json.loads(known))
            if config is None or config == old:
                return old
            if not reconfigure:
                raise ConfigChangedError(
                    f"{self.name} was made with another configuration ({old.difference(config)}). Leave config out "
                    "to use the file's, or give reconfigure=True to change it."
                )
        config = config or ExperienceConfig()
        with self._store.write("configure") as change:
            self._store.set_meta("config", config.to_json())
            self._store.set_meta("fingerprint", config.fingerprint)
            change.touched = True
        return config

    @property
    def name(self) -> str:
        """Path of the file, for messages."""
        return str(self._snapshots.target) if self._snapshots else self._store.name

    @property
    def version(self) -> int:
        """Number of transactions so far; equal versions of copies of one library have equal contents."""
        return self._store.version

    def stamp(self, version: int) -> tuple[Any, ...] | None:
        """Return cause, step and time of a version, by which libraries of one origin are known; None: no such one."""
        return self._store.stamp(version)

    @property
    def horizon(self) -> int:
        """The earliest version that `rollback`, `diff` and `changes_since` can be given; see `max_history`."""
        return self._store.horizon

    @contextmanager
    def transaction(self, cause: str = "transaction", step: int | None = None) -> Iterator[None]:
        """Everything inside is one version, stored whole or, when anything is raised, not at all."""
        with self._write(cause, step):
            yield

    @contextmanager
    def _write(self, cause: str, step: int | None = None) -> Iterator[Change]:
        with self._store.write(cause, step) as change:
            yield change
        if not self._store.writing:
            self._forget(change.version)
        due = time.monotonic() - self._last_snapshot >= self._snapshot_every
        if due and self._snapshots and not self._store.writing:
            self.flush()

    def _forget(self, version: int) -> None:
        limit = self.config.history_limit
        if not forgetting.is_due(self._store, version, limit):
            return
        # What was to be stored is stored; forgetting can wait for another time.
        with contextlib.suppress(LibraryLockedError, DiskFullError), self._store.write("forget"):
            forgetting.forget(self._store, forgetting.newest_horizon(self._store, limit))

    def flush(self) -> None:
        """Write the snapshot of a library on a network file system now; elsewhere everything is stored already.

        Raises:
            SnapshotConflictError: another machine has published since; ours is written beside it.
        """
        if self._snapshots:
            self._last_snapshot = time.monotonic()
            self._snapshots.publish(self._store)

    def close(self) -> None:
        """Write what `flush` writes, and close the file."""
        try:
            self.flush()
        finally:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def save_snapshot(self, path: str | os.PathLike[str]) -> None:
        """Write a copy of the library, with its history, in one step: what belongs beside a checkpoint.

        Raises:
            ExperienceError: the disk is full, or a transaction is open.
        """
        write_snapshot(self._store, Path(path))

    def load_snapshot(self, path: str | os.PathLike[str]) -> None:
        """Become what `save_snapshot` wrote, history and configuration included.

        Raises:
            ExperienceError: no library there, or a damaged one; this library is as it was.
        """
        source = connect_read_only(Path(path))
        try:
            self._replace(source)
        finally:
            source.close()

    def _replace(self, source: sqlite3.Connection) -> None:
        # Before anything is replaced: what raises leaves this library as it was.
        config = _config_of(source, self.name)
        with translated(self.name):
            self._store.replace(source)
        self.config = config
        self._forget_caches()

    def _forget_caches(self) -> None:
        """Called when the contents were replaced."""

    def check_integrity(self) -> list[str]:
        """Return what SQLite finds wrong with the file; empty when all is well. Reads everything."""
        found = [row[0] for row in self._store.rows("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    # One writer, several copies.

    def to_bytes(self) -> bytes:
        """Return the whole library, for `from_bytes` on another rank."""
        return replication.to_bytes(self._store)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return a library in memory that is what `to_bytes` returned: same version, same records."""
        library = cls()
        source = sqlite3.connect(":memory:", isolation_level=None)
        try:
            source.deserialize(data)
            library._replace(source)
        finally:
            source.close()
        return library

    def changes_since(self, version: int) -> Changes:
        """Return what a copy at `version` lacks, for `apply_changes`: plain lists, numbers and texts.

        Raises:
            ValueError: there is no such version, or the history does not reach back to it; see `horizon`.
        """
        return replication.changes_since(self._store, version)

    def apply_changes(self, changes: Changes) -> None:
        """Bring a copy to the version of the changes.

        Raises:
            ExperienceError: the copy is at another version than the one the changes start from.
        """
        replication.apply_changes(self._store, changes)

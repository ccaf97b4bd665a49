"""Errors of the experience library. Each message names the file, what is wrong with it and the way out."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager


class ExperienceError(RuntimeError):
    """Something is wrong with the library; what was committed before is still there."""


class LibraryLockedError(ExperienceError):
    """Another process held the write lock for longer than the timeout."""


class LibraryDamagedError(ExperienceError):
    """The file is truncated or corrupt."""


class ForeignFileError(ExperienceError):
    """The file is no experience library, or a newer version of this package wrote it."""


class DiskFullError(ExperienceError):
    """There was no room for the transaction; it was rolled back whole."""


class ConfigChangedError(ExperienceError):
    """The library was made with another configuration than the one given."""


class SnapshotConflictError(ExperienceError):
    """Somebody else published a snapshot of a library on a network file system."""


def meaning(error: sqlite3.Error, name: str) -> ExperienceError:
    """Return our error for one of SQLite's; `name` is the file's."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LibraryLockedError(
            f"{name}: another process holds the write lock, longer than this one waits. Nothing was stored. End that "
            "process, then resume the run from its last checkpoint, or repeat the call; or give a larger timeout."
        )
    if code == sqlite3.SQLITE_FULL:
        return DiskFullError(f"{name}: the disk is full. The transaction was rolled back; make room and repeat it.")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return LibraryDamagedError(f"{name}: the file is damaged ({error}). Restore it from a checkpoint's snapshot.")
    return ExperienceError(f"{name}: SQLite says: {error}.")


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Raise SQLite's errors as ours, with the name of the file.

    Raises:
        ExperienceError: the subclass that fits; the original stands as its cause.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise meaning(error, name) from error

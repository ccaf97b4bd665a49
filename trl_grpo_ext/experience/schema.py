"""The SQLite file: tables, and opening it without harm to files that are not ours. Standard library only."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path

from trl_grpo_ext.experience.errors import ExperienceError, ForeignFileError, LibraryDamagedError, translated

SCHEMA_VERSION = 1
# "GRPO" in the four bytes that SQLite reserves for the application.
APPLICATION_ID = 0x4752504F
DURABILITY = {"normal": "NORMAL", "full": "FULL"}

# `prompts.indexed` says that a prompt has, or had, an episode, and stands in the text index.
# `operations` is only ever appended to; `before` and `after` are JSON of the columns that changed.
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE versions (
  version INTEGER PRIMARY KEY, cause TEXT NOT NULL, step INTEGER, created REAL NOT NULL,
  rollouts INTEGER NOT NULL, stored INTEGER NOT NULL, pruned INTEGER NOT NULL,
  episodes INTEGER NOT NULL, lessons INTEGER NOT NULL
);
CREATE TABLE prompts (
  prompt INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, text TEXT NOT NULL, indexed INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE records (
  record INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
  prompt INTEGER REFERENCES prompts, text TEXT NOT NULL, advantage REAL, reward REAL, created REAL NOT NULL,
  metadata TEXT NOT NULL, uses INTEGER NOT NULL DEFAULT 0, gain REAL NOT NULL DEFAULT 0.0, live INTEGER NOT NULL
);
CREATE TABLE labels (
  key TEXT NOT NULL, value TEXT NOT NULL, record INTEGER NOT NULL, PRIMARY KEY (key, value, record)
) WITHOUT ROWID;
CREATE TABLE groups (
  key TEXT PRIMARY KEY, prompt INTEGER NOT NULL, rollouts INTEGER NOT NULL, rewarded INTEGER NOT NULL,
  reward_sum REAL NOT NULL, reward_min REAL, reward_max REAL, created REAL NOT NULL, version INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE operations (
  number INTEGER PRIMARY KEY AUTOINCREMENT, version INTEGER NOT NULL, kind TEXT NOT NULL, record INTEGER NOT NULL,
  before TEXT, after TEXT
);
CREATE INDEX records_by_advantage ON records (advantage, kind, live) WHERE live AND kind = 'episode';
CREATE INDEX records_by_age ON records (created) WHERE live AND kind = 'episode';
CREATE INDEX records_by_kind ON records (kind, record) WHERE live AND kind = 'lesson';
CREATE INDEX records_by_prompt ON records (prompt);
CREATE INDEX operations_by_version ON operations (version);
CREATE INDEX groups_by_version ON groups (version);
CREATE INDEX groups_by_age ON groups (created);
INSERT INTO versions VALUES (0, 'create', NULL, 0.0, 0, 0, 0, 0, 0);
"""


def _check_header(path: Path) -> None:
    """Refuse what is not ours by its bytes: connecting to a foreign database could already change it."""
    with path.open("rb") as file:
        header = file.read(100)
    if not header.startswith(b"SQLite format 3\0") or len(header) < 100:
        raise ForeignFileError(f"{path} is not an experience library (no SQLite file); give another path.")
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise ForeignFileError(f"{path} is a database of another program; give another path.")
    # 1: without a write-ahead log, 2: with one; SQLite reads a file of a later format, and refuses to write to it.
    if not {header[18], header[19]} <= {1, 2}:
        raise LibraryDamagedError(
            f"{path} is damaged (file format {header[18]}, {header[19]}). Restore it from a checkpoint's snapshot."
        )
    page = int.from_bytes(header[16:18], "big")
    expected = int.from_bytes(header[28:32], "big") * (65536 if page == 1 else page)
    log = path.with_name(path.name + "-wal")
    # With a write-ahead log the pages that are missing here may stand there. The size is read last: a log that is gone
    # by now has been copied back whole.
    logged = log.is_file() and log.stat().st_size
    size = path.stat().st_size
    if size < expected and not logged:
        raise LibraryDamagedError(
            f"{path} is truncated: {size} of {expected} bytes. Restore it from a checkpoint's snapshot."
        )


def _check_schema(connection: sqlite3.Connection, name: str) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise ForeignFileError(
            f"{name} has schema version {version}, this package knows {SCHEMA_VERSION}: update trl-grpo-ext."
        )


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.executescript(
        f"BEGIN; {TABLES} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )


def _create(path: Path) -> None:
    """Put an empty library in place in one step, so that no other process ever sees half of one."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    new = Path(name)
    try:
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as connection:
            _make_tables(connection)
        mask = os.umask(0)
        os.umask(mask)
        new.chmod(0o666 & ~mask)
        _put_in_place(new, path)
    finally:
        new.unlink(missing_ok=True)


def _put_in_place(new: Path, path: Path) -> None:
    """Unlike a renaming, a link does not take the place of a library that another process has just made."""
    try:
        if path.exists() and not path.stat().st_size:
            path.unlink()
        os.link(new, path)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links.
        if not path.exists():
            os.replace(new, path)


def _find_or_create(path: Path, create: bool) -> None:
    if not path.exists() or not path.stat().st_size:
        if not create:
            raise ExperienceError(f"{path}: there is no experience library.")
        if not path.parent.is_dir():
            raise ExperienceError(f"{path}: the folder does not exist; create it first.")
        with translated(str(path)):
            _create(path)
    _check_header(path)


def connect(path: Path | None, durability: str, timeout: float, create: bool) -> sqlite3.Connection:
    """Open a library file, or one in memory.

    Args:
        path: the file; None for a library in memory.
        durability: "normal" (every commit outlives a killed process) or "full" (and a power cut).
        timeout: seconds to wait for another writer.
        create: whether a missing file is made.

    Raises:
        ValueError: an unknown durability.
        ForeignFileError: not a library, or a newer one. The file is left as it is.
        LibraryDamagedError: truncated or corrupt.
        LibraryLockedError: another process holds the lock.
        ExperienceError: no such file or folder.
    """
    if durability not in DURABILITY:
        raise ValueError(f"durability must be one of {', '.join(DURABILITY)}, not {durability!r}.")
    name = str(path or "experience library in memory")
    if path is not None:
        _find_or_create(path, create)
    with translated(name):
        connection = sqlite3.connect(
            path or ":memory:", timeout=timeout, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            if path is None:
                _make_tables(connection)
            else:
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {DURABILITY[durability]}")
            connection.execute("PRAGMA cache_size = -65536")
            _check_schema(connection, name)
        except BaseException:
            connection.close()
            raise
    return connection


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Open a library file to copy it; nothing is written.

    Raises:
        ForeignFileError: not a library, or a newer one.
        LibraryDamagedError: truncated or corrupt. Reads everything to find out.
        ExperienceError: no such file.
    """
    if not path.is_file() or not path.stat().st_size:
        raise ExperienceError(f"{path}: there is no experience library.")
    _check_header(path)
    with translated(str(path)):
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            _check_schema(connection, str(path))
            found = [row[0] for row in connection.execute("PRAGMA quick_check")]
            if found != ["ok"]:
                raise LibraryDamagedError(f"{path} is damaged ({found[0]}); take another snapshot.")
        except BaseException:
            connection.close()
            raise
    return connection

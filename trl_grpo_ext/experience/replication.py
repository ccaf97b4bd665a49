"""Versions as data: rank 0 writes, the other ranks apply what it wrote and hold the same version."""

from __future__ import annotations

import json
import sqlite3
from typing import Any, TypeAlias

from trl_grpo_ext.experience.errors import ExperienceError
from trl_grpo_ext.experience.forgetting import forget
from trl_grpo_ext.experience.history import check_version
from trl_grpo_ext.experience.store import ExperienceStore

# Lists and dictionaries of numbers and texts only: fit for `broadcast_object_list` and for JSON.
Changes: TypeAlias = dict[str, Any]

_TOUCHED = "SELECT DISTINCT record FROM operations WHERE version > ?"
_SELECTIONS = {
    "versions": "SELECT * FROM versions WHERE version > ?",
    "operations": "SELECT * FROM operations WHERE version > ?",
    "prompts": f"SELECT prompt, key, text FROM prompts WHERE prompt IN (SELECT prompt FROM records WHERE record IN ({_TOUCHED}))",
    "records": f"SELECT * FROM records WHERE record IN ({_TOUCHED})",
}


def changes_since(store: ExperienceStore, version: int) -> Changes:
    """Return everything that a library at `version` lacks to be at this library's version.

    Raises:
        ValueError: there is no such version, or the history does not reach back to it.
    """
    check_version(store, version)
    return {"since": version, "horizon": store.horizon} | {
        name: [list(row) for row in store.rows(statement, (version,))] for name, statement in _SELECTIONS.items()
    }


def apply_changes(store: ExperienceStore, changes: Changes) -> None:
    """Bring a copy of the library to the version of the changes, in one transaction; without changes do nothing.

    Raises:
        ExperienceError: the copy is at another version than the one the changes start from.
    """
    with store.write("apply") as change:
        if changes["since"] != change.version - 1:
            raise ExperienceError(
                f"{store.name} is at version {change.version - 1}; these changes start from {changes['since']}. "
                "Ask for changes_since() this version."
            )
        # First: numbers of prompts that are forgotten are given away again.
        forget(store, changes["horizon"])
        for prompt, key, text in changes["prompts"]:
            store.rows("INSERT OR IGNORE INTO prompts (prompt, key, text) VALUES (?, ?, ?)", (prompt, key, text))
            store.index_prompt(prompt, text)
        for row in changes["records"]:
            _replace_record(store, row)
        for table in ("operations", "versions"):
            for row in changes[table]:
                store.rows(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _replace_record(store: ExperienceStore, row: list[Any]) -> None:
    old = store.value("SELECT metadata FROM records WHERE record = ?", (row[0],))
    if old is not None:
        store.unlabel(row[0], json.loads(old))
    store.rows(f"INSERT OR REPLACE INTO records VALUES ({', '.join('?' * len(row))})", row)
    store.label(row[0], json.loads(row[8]))


def to_bytes(store: ExperienceStore) -> bytes:
    """Return the whole library as one SQLite file in memory."""
    copy = sqlite3.connect(":memory:")
    try:
        store.copy_to(copy)
        data = bytearray(copy.serialize())
        # A file with a write-ahead log says so in these two bytes, and a database in memory can't have one.
        data[18:20] = b"\x01\x01"
        return bytes(data)
    finally:
        copy.close()

"""What happened between two versions, and the way back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from trl_grpo_ext.experience.rows import Change
from trl_grpo_ext.experience.store import ExperienceStore

_APPEARS, _VANISHES = ("add", "restore"), ("retire",)


@dataclass(frozen=True)
class VersionInfo:
    """One transaction: its number, cause, training step, time (seconds since the epoch) and counts of operations."""

    version: int
    cause: str
    step: int | None
    created: float
    added: int
    retired: int
    changed: int


@dataclass(frozen=True)
class Difference:
    """Net difference between two versions.

    Args:
        added: ids that the later one has and the earlier one has not, in the order of the records.
        retired: ids that the earlier one has and the later one has not.
        changed: for ids that both have, (earlier value, later value) by column.
    """

    added: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    changed: dict[str, dict[str, tuple[Any, Any]]] = field(default_factory=dict)


def history(store: ExperienceStore, limit: int | None = None) -> list[VersionInfo]:
    """Return the versions whose operations are known, the newest first."""
    rows = store.rows(
        "SELECT versions.version, cause, step, created, total(kind IN ('add', 'restore')), total(kind = 'retire'), "
        "total(kind = 'change') FROM versions LEFT JOIN operations USING (version) WHERE version > ? "
        "GROUP BY version ORDER BY version DESC LIMIT ?",
        (store.horizon, -1 if limit is None else limit),
    )
    return [VersionInfo(*row[:4], *map(int, row[4:])) for row in rows]


def check_version(store: ExperienceStore, version: int, last: int | None = None) -> int:
    """Return the version.

    Raises:
        ValueError: there is no such version, or the history does not reach back to it.
    """
    last = store.version if last is None else last
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version <= last:
        raise ValueError(f"{store.name}: versions are 0 to {last}, there is no {version!r}.")
    if version < store.horizon:
        raise ValueError(
            f"{store.name}: the history reaches back to version {store.horizon}, not to {version}; a larger "
            "max_history in the library's configuration keeps more."
        )
    return version


def difference(store: ExperienceStore, earlier: int, later: int) -> Difference:
    """Return the net difference between two versions; swapped when `earlier` is the later one.

    Raises:
        ValueError: there is no such version, or the history does not reach back to it.
    """
    low, high = sorted((check_version(store, earlier), check_version(store, later)))
    rows = store.rows(
        "SELECT records.id, operations.kind, before, after FROM operations JOIN records USING (record) "
        "WHERE version > ? AND version <= ? ORDER BY number",
        (low, high),
    )
    was: dict[str, bool] = {}
    is_now: dict[str, bool] = {}
    changed: dict[str, dict[str, tuple[Any, Any]]] = {}
    for name, kind, before, after in rows:
        was.setdefault(name, kind not in _APPEARS)
        is_now[name] = kind not in _VANISHES
        if kind == "change":
            old, new, columns = json.loads(before), json.loads(after), changed.setdefault(name, {})
            columns.update({key: (columns.get(key, (old[key],))[0], new[key]) for key in new})
    if earlier > later:
        was, is_now = is_now, was
        changed = {name: {key: (b, a) for key, (a, b) in columns.items()} for name, columns in changed.items()}
    found = Difference()
    for name in was:
        if was[name] and is_now[name]:
            columns = {key: pair for key, pair in changed.get(name, {}).items() if pair[0] != pair[1]}
            found.changed.update({name: columns} if columns else {})
        elif was[name] or is_now[name]:
            (found.added if is_now[name] else found.retired).append(name)
    return found


def rollback(store: ExperienceStore, change: Change, version: int) -> None:
    """Make the library what it was at a version, as a new version: the log only grows.

    Groups stored after that version are forgotten, so that they can be stored again.

    Raises:
        ValueError: there is no such version, or the history does not reach back to it.
    """
    check_version(store, version, change.version - 1)
    rows = store.rows("SELECT kind, record, before FROM operations WHERE version > ? ORDER BY number DESC", (version,))
    for kind, record, before in rows:
        if kind == "change":
            store.update(change, record, json.loads(before))
        else:
            store.set_live(change, [record], kind in _VANISHES)
    store.rows("DELETE FROM groups WHERE version > ?", (version,))
    then, counters = store.counters(version), change.counters
    counters.rollouts, counters.stored, counters.pruned = then.rollouts, then.stored, then.pruned
    change.touched = True

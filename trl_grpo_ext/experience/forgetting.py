"""How far the history goes back: what lies beyond is forgotten, so that a file does not grow with the length of a run."""

from __future__ import annotations

import json

from trl_grpo_ext.experience.store import ExperienceStore

# In versions: counting the groups is too slow for every one of them.
_EVERY = 64
# Forgetting reads what it keeps, so it waits until there is this much more than is kept.
_SLACK = 1.25

_TABLES = ("operations", "groups")


def is_due(store: ExperienceStore, version: int, limit: int) -> bool:
    """Return whether operations or groups exceed the limit far enough to be worth the work; cheap at most versions."""
    if version % _EVERY:
        return False
    operations = store.value("SELECT max(number) - min(number) + 1 FROM operations") or 0
    return max(operations, store.value("SELECT count(*) FROM groups")) > limit * _SLACK


def newest_horizon(store: ExperienceStore, limit: int) -> int:
    """Return the first version after which there are at most `limit` operations and as many groups."""
    found = [
        store.value(f"SELECT version FROM {table} ORDER BY version DESC LIMIT 1 OFFSET ?", (limit,))
        for table in _TABLES
    ]
    return max(version or 0 for version in found)


def forget(store: ExperienceStore, horizon: int) -> None:
    """Forget how the library came to be what it was at a version; must be called within a transaction.

    Operations and groups up to that version go, retired records that no later operation names, and prompts that are
    left without records and groups. Live records, counts and what `rollback` to later versions needs all stay.
    """
    if horizon <= store.horizon:
        return
    prompts = _forget_records(store, horizon)
    prompts |= {prompt for (prompt,) in store.rows("SELECT prompt FROM groups WHERE version <= ?", (horizon,))}
    for table in _TABLES:
        store.rows(f"DELETE FROM {table} WHERE version <= ?", (horizon,))
    _forget_prompts(store, prompts)
    store.set_meta("horizon", str(horizon))


def _forget_records(store: ExperienceStore, horizon: int) -> set[int]:
    """Returns the prompts that had these records."""
    gone = store.rows(
        "SELECT record, prompt, metadata FROM records WHERE NOT live "
        "AND record IN (SELECT record FROM operations WHERE version <= ?) "
        "AND record NOT IN (SELECT record FROM operations WHERE version > ?)",
        (horizon, horizon),
    )
    for number, _, metadata in gone:
        store.unlabel(number, json.loads(metadata))
        store.rows("DELETE FROM records WHERE record = ?", (number,))
    return {prompt for _, prompt, _ in gone if prompt is not None}


def _forget_prompts(store: ExperienceStore, prompts: set[int]) -> None:
    for prompt in sorted(prompts):
        if store.value("SELECT 1 FROM records WHERE prompt = ? LIMIT 1", (prompt,)) is None:
            # Whether a prompt is searched may not hang on groups, which copies on other ranks do not get.
            store.unindex_prompt(prompt)
    named = {prompt for (prompt,) in store.rows("SELECT prompt FROM groups")} if prompts else set()
    for prompt in sorted(prompts - named):
        store.rows(
            "DELETE FROM prompts WHERE prompt = ? AND NOT EXISTS (SELECT 1 FROM records WHERE records.prompt = ?)",
            (prompt, prompt),
        )

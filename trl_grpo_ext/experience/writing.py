"""Putting records and groups into a store, each content once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from trl_grpo_ext.experience.config import ExperienceConfig
from trl_grpo_ext.experience.errors import ExperienceError
from trl_grpo_ext.experience.groups import RolloutGroup
from trl_grpo_ext.experience.pruning import prune
from trl_grpo_ext.experience.records import Episode, Lesson, Record
from trl_grpo_ext.experience.rows import Change, metadata_json
from trl_grpo_ext.experience.store import ExperienceStore

_ADD_GROUP = "INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


def _columns(record: Record, old: dict[str, object]) -> dict[str, object]:
    """What the newer of two sightings of one content changes."""
    columns: dict[str, object] = {"metadata": metadata_json({**old, **record.metadata}), "created": record.timestamp}
    if isinstance(record, Episode):
        columns |= {"advantage": record.advantage, "reward": record.reward}
    return columns


def put_record(store: ExperienceStore, change: Change, record: Record) -> tuple[str, bool]:
    """Add a record, restore it when it is retired, or bring it up to date.

    Of two sightings of one episode the newer advantage, reward and time hold. A lesson whose text another lesson has
    taken over by rewording is that lesson.

    Returns:
        The id, and whether the library did not hold the record before.
    """
    name = _reworded(store, record) or record.id
    rows = store.rows("SELECT record, live FROM records WHERE id = ?", (name,))
    if not rows:
        store.insert(change, record)
        return name, True
    number, live = rows[0]
    if not live:
        store.set_live(change, [number], True)
        store.update(change, number, {"text": plain_content(record)})
    held = store.read([number])[0].record
    if not live or record.timestamp >= held.timestamp:
        store.update(change, number, _columns(record, dict(held.metadata)))
    return name, not live


def plain_content(record: Record) -> str:
    """Return the text column of a record."""
    return record.response if isinstance(record, Episode) else record.text


def _reworded(store: ExperienceStore, record: Record) -> str | None:
    if isinstance(record, Episode):
        return None
    return store.value("SELECT id FROM records WHERE kind = 'lesson' AND live AND text = ?", (record.text,))


def put_records(
    store: ExperienceStore, change: Change, config: ExperienceConfig, records: Sequence[Record], now: float
) -> list[str]:
    """Add records that did not come as a group and apply the limits; each new episode counts as one stored rollout."""
    names = []
    for record in records:
        name, new = put_record(store, change, record)
        names.append(name)
        if new and isinstance(record, Episode):
            change.count(rollouts=1, stored=1)
    episodes = [record for record in records if isinstance(record, Episode)]
    apply_limits(store, change, config, now, episodes)
    return names


def apply_limits(
    store: ExperienceStore,
    change: Change,
    config: ExperienceConfig,
    now: float,
    added: Iterable[Episode | RolloutGroup],
) -> None:
    """Prune; the quotas are checked for the prompts and domains of what was added."""
    prompts: set[int] = set()
    domains: set[str] = set()
    for item in added:
        prompts.add(store.add_prompt(item.prompt))
        if isinstance(item.metadata.get("domain"), str):
            domains.add(item.metadata["domain"])
    prune(store, change, config, now, prompts, domains)


def put_group(store: ExperienceStore, change: Change, group: RolloutGroup, episodes: Sequence[Episode]) -> list[str]:
    """Count a group and add its episodes; nothing when the group is known. Returns the ids."""
    if store.value("SELECT 1 FROM groups WHERE key = ?", (group.key,)) is not None:
        return []
    rewards = [reward for reward in group.floats() if reward is not None]
    # A sum beyond the largest float is kept as such; only `coverage` reads it.
    total = min(max(sum(rewards), -1.7e308), 1.7e308)
    bounds = (min(rewards, default=None), max(rewards, default=None))
    prompt = store.add_prompt(group.prompt)
    row = (group.key, prompt, len(group.responses), len(rewards), total, *bounds, group.timestamp, change.version)
    store.rows(_ADD_GROUP, row)
    put = [put_record(store, change, episode) for episode in episodes]
    change.count(rollouts=len(group.responses), stored=sum(new for _, new in put))
    return list(dict.fromkeys(name for name, _ in put))


def put_groups(
    store: ExperienceStore, change: Change, config: ExperienceConfig, groups: Sequence[RolloutGroup], now: float
) -> list[list[str]]:
    """Add groups and apply the limits. Returns the ids of each group's episodes, also of those pruned at once."""
    chosen = [group.episodes(config.min_advantage_threshold) for group in groups]
    names = [put_group(store, change, group, episodes) for group, episodes in zip(groups, chosen, strict=True)]
    apply_limits(store, change, config, now, groups)
    return names


def live_number(store: ExperienceStore, name: str) -> int:
    """Return the row number of a live record.

    Raises:
        KeyError: there is none of this id.
    """
    number = store.number(name)
    if number is None:
        raise KeyError(f"{store.name} holds no record {name!r}.")
    return number


def reword(store: ExperienceStore, change: Change, name: str, lesson: Lesson) -> None:
    """Give a lesson another text; its id and its usefulness stay.

    Raises:
        KeyError: there is no record of this id.
        ExperienceError: it is an episode, or another lesson has this text.
    """
    number = live_number(store, name)
    if not isinstance(store.read([number])[0].record, Lesson):
        raise ExperienceError(f"{name} is an episode; only lessons can be reworded.")
    other = _reworded(store, lesson)
    if other not in (None, name):
        raise ExperienceError(f"lesson {other} has this text already; retire {name} instead.")
    store.update(change, number, {"text": lesson.text, "created": lesson.timestamp})


def put_usage(store: ExperienceStore, change: Change, gains: Iterable[tuple[str, float]]) -> None:
    """Add outcomes (id, reward with the record - baseline); records retired meanwhile are passed over.

    Raises:
        ValueError: a gain that is not finite.
    """
    for name, gain in gains:
        if not math.isfinite(gain):
            raise ValueError(f"the gain of {name} must be a finite number, not {gain!r}.")
        number = store.number(name)
        if number is not None:
            held = store.read([number])[0]
            store.update(change, number, {"uses": held.uses + 1, "gain": held.gain + gain})

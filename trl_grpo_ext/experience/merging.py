"""Adding one library to another, so that doing it twice changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from trl_grpo_ext.experience.config import ExperienceConfig
from trl_grpo_ext.experience.reading import scan
from trl_grpo_ext.experience.records import Episode
from trl_grpo_ext.experience.rows import Change
from trl_grpo_ext.experience.store import ExperienceStore
from trl_grpo_ext.experience.writing import apply_limits, put_record


def take_over_uses(store: ExperienceStore, change: Change, uses: Mapping[str, tuple[int, float]]) -> None:
    """Give records the (uses, sum of gains) of another library where that one has seen more uses."""
    for name, (count, gain) in uses.items():
        number = store.number(name)
        if number is not None and store.read([number])[0].uses < count:
            store.update(change, number, {"uses": count, "gain": gain})


def _take_over_groups(store: ExperienceStore, change: Change, other: ExperienceStore) -> int:
    """Add the groups that are not known; returns their rollouts."""
    rollouts = 0
    rows = other.rows(
        "SELECT groups.key, prompts.text, rollouts, rewarded, reward_sum, reward_min, reward_max, created "
        "FROM groups JOIN prompts USING (prompt)"
    )
    for key, text, *figures in rows:
        if store.value("SELECT 1 FROM groups WHERE key = ?", (key,)) is None:
            row = (key, store.add_prompt(text), *figures, change.version)
            store.rows("INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            rollouts += figures[0]
    return rollouts


def merge(store: ExperienceStore, change: Change, config: ExperienceConfig, other: ExperienceStore, now: float) -> int:
    """Add the records, uses and groups of another store; returns how many records are new."""
    new_episodes, new_lessons, episodes, uses = 0, 0, [], {}
    for item in scan(other, None, "", ()):
        name, new = put_record(store, change, item.record)
        uses[name] = (item.uses, item.gain)
        if isinstance(item.record, Episode):
            new_episodes += new
            episodes.append(item.record)
        else:
            new_lessons += new
    take_over_uses(store, change, uses)
    rollouts = _take_over_groups(store, change, other)
    if new_episodes or rollouts:
        change.count(rollouts=max(rollouts, new_episodes), stored=new_episodes)
    apply_limits(store, change, config, now, episodes)
    return new_episodes + new_lessons

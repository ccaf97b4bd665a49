"""Which episodes make room: the stale, then what exceeds a quota, then the lowest advantages.

Pruning happens inside the transaction that added, so that no version ever exceeds the limits by its own additions.
Pruned records are retired, not deleted: a rollback brings them back.
"""

from __future__ import annotations

from collections.abc import Iterable

from trl_grpo_ext.experience.config import ExperienceConfig
from trl_grpo_ext.experience.filters import condition
from trl_grpo_ext.experience.rows import Change
from trl_grpo_ext.experience.store import ExperienceStore

_EPISODES = "FROM records WHERE live AND kind = 'episode'"
# Named, because SQLite would rather walk the whole table in the order that is asked for than sort the few that match.
_BY_AGE = "FROM records INDEXED BY records_by_age WHERE live AND kind = 'episode'"
_BY_ADVANTAGE = "FROM records INDEXED BY records_by_advantage WHERE live AND kind = 'episode'"
_BY_PROMPT = "FROM records INDEXED BY records_by_prompt WHERE live AND kind = 'episode'"
# The lowest advantage goes first, and of equal ones the oldest.
_WORST_FIRST = "ORDER BY advantage, record"


def _kept(limit: int, prune_to: float) -> int:
    """How many a pruning leaves: at least one, unless none are wanted."""
    return max(min(1, limit), int(limit * prune_to))


def _retire(store: ExperienceStore, change: Change, numbers: list[int]) -> int:
    store.set_live(change, numbers, False)
    if numbers:
        change.count(pruned=len(numbers))
    return len(numbers)


def prune_stale(store: ExperienceStore, change: Change, max_age: float, now: float) -> int:
    """Retire what is older than `max_age` seconds and forget the groups of that age; returns how many were retired.

    With a clock that went backwards nothing is stale; after one that jumped forward, a rollback restores.
    """
    store.rows("DELETE FROM groups WHERE created < ?", (now - max_age,))
    stale = store.rows(f"SELECT record {_BY_AGE} AND created < ? ORDER BY record", (now - max_age,))
    return _retire(store, change, [number for (number,) in stale])


def prune_size(store: ExperienceStore, change: Change, limit: int, prune_to: float) -> int:
    """Above `limit` episodes, retire the worst down to `prune_to * limit`; returns how many were retired."""
    if change.counters.episodes <= limit:
        return 0
    surplus = change.counters.episodes - _kept(limit, prune_to)
    worst = store.rows(f"SELECT record {_BY_ADVANTAGE} {_WORST_FIRST} LIMIT ?", (surplus,))
    return _retire(store, change, [number for (number,) in worst])


def prune_prompt(store: ExperienceStore, change: Change, prompt: int, limit: int) -> int:
    """Retire the worst episodes of a prompt beyond `limit`; returns how many were retired."""
    held = store.rows(f"SELECT record {_BY_PROMPT} AND prompt = ? {_WORST_FIRST}", (prompt,))
    return _retire(store, change, [number for (number,) in held[: max(0, len(held) - limit)]])


def prune_domain(store: ExperienceStore, change: Change, domain: str, limit: int, prune_to: float) -> int:
    """Retire the worst episodes of a domain beyond `limit`, down to `prune_to * limit`; returns how many."""
    matching, values = condition({"domain": domain}, scan=True)
    held = store.value(f"SELECT count(*) {_EPISODES}{matching}", values)
    if held <= limit:
        return 0
    surplus = held - _kept(limit, prune_to)
    worst = store.rows(f"SELECT record {_EPISODES}{matching} {_WORST_FIRST} LIMIT ?", [*values, surplus])
    return _retire(store, change, [number for (number,) in worst])


def prune(
    store: ExperienceStore,
    change: Change,
    config: ExperienceConfig,
    now: float,
    prompts: Iterable[int] = (),
    domains: Iterable[str] = (),
) -> int:
    """Apply every limit of the configuration, quotas to the prompts and domains given; returns how many were retired."""
    retired = prune_stale(store, change, config.max_experience_age, now)
    if config.max_per_prompt is not None:
        retired += sum(prune_prompt(store, change, prompt, config.max_per_prompt) for prompt in sorted(set(prompts)))
    if config.max_per_domain is not None:
        limit, share = config.max_per_domain, config.prune_to
        retired += sum(prune_domain(store, change, domain, limit, share) for domain in sorted(set(domains)))
    return retired + prune_size(store, change, config.max_library_size, config.prune_to)

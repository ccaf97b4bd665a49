"""The rewards that are written as mappings: `grpo_reward_composition` and `grpo_collapse_guard`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamafactory_plugin.errors import UsageError, nearest
from trl_grpo_ext.rewards.composition import CompositeReward, compose
from trl_grpo_ext.rewards.label_free import CollapseGuard

Reward = Callable[..., Any]
Resolve = Callable[[Any], Reward]
CANARY_COLUMN = "canary"
GUARD_KEYS = (
    "truth",
    "canary_dataset",
    "canary_column",
    "policy",
    "fallback",
    "train_on_canaries",
    "window",
    "min_rise",
    "min_drop",
    "patience",
    "name",
)


def composed_reward(
    mapping: Mapping[str, Any], known: Mapping[str, Reward], resolve: Resolve, group_size: int
) -> CompositeReward:
    """The composite of `grpo_reward_composition`; its groups are those of the run unless it says otherwise.

    Args:
        mapping: as `trl_grpo_ext.rewards.composition.compose` takes it.
        known: rewards of the run by name, before the registry.
        resolve: turns a name or `path.py:function` into a reward function.
        group_size: the run's.

    Raises:
        UsageError: for what `compose` or `resolve` refuses.
    """
    try:
        entries = mapping.get("rewards")
        rewards = [_resolved(entry, known, resolve) for entry in entries] if isinstance(entries, list) else entries
        return compose({"group_size": group_size, **mapping, **({"rewards": rewards} if entries else {})}, known)
    except (TypeError, ValueError) as error:
        raise UsageError(f"grpo_reward_composition: {error}") from error


def _resolved(entry: Any, known: Mapping[str, Reward], resolve: Resolve) -> Any:
    """An entry whose reward is the function; one that is no name is left for `compose` to refuse."""
    item = dict(entry) if isinstance(entry, Mapping) else {"reward": entry}
    name = item.get("reward")
    if isinstance(name, str) and name not in known:
        item["reward"] = resolve(name)
        item.setdefault("name", item["reward"].__name__)
    return item


def names_reward(mapping: Mapping[str, Any], name: str) -> bool:
    """Whether a composition has a component with this reward."""
    entries = mapping.get("rewards")
    entries = entries if isinstance(entries, list) else []
    return any((entry.get("reward") if isinstance(entry, Mapping) else entry) == name for entry in entries)


def guarded_reward(mapping: Mapping[str, Any], rewards: Sequence[Reward], resolve: Resolve) -> CollapseGuard:
    """The guard of `grpo_collapse_guard` around the run's only reward.

    Raises:
        UsageError: for an unknown key, another number of rewards, and what `CollapseGuard` refuses.
    """
    for key in mapping:
        if key not in GUARD_KEYS:
            raise UsageError(
                f"grpo_collapse_guard: unknown key {key!r}{nearest(key, GUARD_KEYS)} Keys: {', '.join(GUARD_KEYS)}."
            )
    if "truth" not in mapping:
        raise UsageError(
            "grpo_collapse_guard: the key 'truth' is missing; name the labelled reward that scores canary rows."
        )
    if len(rewards) != 1:
        raise UsageError(
            f"grpo_collapse_guard: it guards one reward, and this run has {len(rewards)}; name one in reward_funcs, or "
            "several in grpo_reward_composition."
        )
    canary_datasets(mapping)
    options = {key: value for key, value in mapping.items() if key != "canary_dataset"}
    try:
        options |= {key: resolve(options[key]) for key in ("truth", "fallback") if options.get(key) is not None}
        return CollapseGuard(rewards[0], **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"grpo_collapse_guard: {error}") from error


def canary_datasets(mapping: Mapping[str, Any]) -> tuple[str, ...]:
    """The datasets whose rows are the guard's canaries; empty when a column of the data marks them.

    Raises:
        UsageError: a value that is no name, or a column named beside it.
    """
    named = mapping.get("canary_dataset")
    if named is None:
        return ()
    names = [part.strip() for part in named.split(",")] if isinstance(named, str) else named
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UsageError(f"grpo_collapse_guard: canary_dataset must be the name of a dataset, not {named!r}.")
    if "canary_column" in mapping:
        raise UsageError(
            "grpo_collapse_guard: canary_dataset and canary_column both say which rows are canaries; keep one."
        )
    return tuple(names)

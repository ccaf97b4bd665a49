"""From the rollouts of a generation to what the library stores of them. Pure functions; standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from trl_grpo_ext.experience.groups import RolloutGroup
from trl_grpo_ext.experience.rows import Counters
from trl_grpo_ext.experience.selection import Selection
from trl_grpo_ext.experience.stats import ExperienceStats


@dataclass(frozen=True)
class Rollout:
    """One row of a generation, as every rank learns of it.

    Args:
        prompt: plain text of the prompt; empty where nothing is recorded.
        completion: text of the completion; empty where nothing is recorded.
        selection: what the prompt was given.
        metadata: of the row, for the episodes.
    """

    prompt: str
    completion: str
    selection: Selection
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ObservedGroup:
    """The rollouts of one prompt, and what that prompt had been given."""

    group: RolloutGroup
    selection: Selection

    @property
    def mean_reward(self) -> float | None:
        """Mean of the rewards that are there; None without any."""
        known = [reward for reward in self.group.floats() if reward is not None]
        return fmean(known) if known else None


def known_reward(value: float) -> float | None:
    """Return a reward, or None where there is none: TRL's NaN; an infinite one, which has no mean, counts as none."""
    return value if math.isfinite(value) else None


def observed_groups(
    rollouts: Sequence[Rollout], rewards: Sequence[float | None], size: int, step: int, first: int = 0
) -> list[ObservedGroup]:
    """Return the groups of one generation.

    Each has a name made of step, place and content: the same rollouts of the same step, in a run that is repeated or
    resumed, are one group, and equal rollouts of two steps are two.

    Args:
        rollouts: of all ranks, groups contiguous.
        rewards: one per rollout.
        size: rollouts per group.
        step: optimizer step that they are generated for.
        first: groups of this step that there were before.
    """
    found = []
    for start in range(0, len(rollouts), size):
        rows = rollouts[start : start + size]
        # A prompt without any text can't be told from others.
        if rows[0].prompt.strip():
            completions = [row.completion for row in rows]
            group = RolloutGroup(rows[0].prompt, completions, rewards[start : start + size], rows[0].metadata)
            uid = f"step-{step}/{first + start // size}/{group.key}"
            found.append(ObservedGroup(replace(group, uid=uid), rows[0].selection))
    return found


def usage_gains(groups: Iterable[ObservedGroup]) -> list[tuple[str, float]]:
    """Return (id, gain) for each use of a record in one optimizer step.

    gain = mean reward of the group that had the record - mean reward of the step's groups from which dropout withheld
    theirs. Dropout picks these by chance, so on average they differ from the others in nothing but the records. A mean
    of the same group would always give 0, one over time would measure the training. Without such groups, always at
    dropout 0, nothing is known and nothing is returned.
    """
    groups = [group for group in groups if group.mean_reward is not None]
    control = [group.mean_reward for group in groups if group.selection.withheld]
    if not control:
        return []
    baseline = fmean(reward for reward in control if reward is not None)
    return [(name, (group.mean_reward or 0.0) - baseline) for group in groups for name in group.selection.ids]


def generation_metrics(selections: Sequence[Selection], rewards: Sequence[float | None]) -> dict[str, float]:
    """Return the metrics of one generation, over the rows of all ranks.

    `injected_share`: share of rows with experiences. `tokens`: their mean length, tokens, over these rows.
    `reward_with`: mean reward of these rows. `reward_without`: mean reward of the rows from which dropout withheld
    theirs; prompts that nothing was found for would make the comparison unfair. A mean of nothing is left out.
    """
    rows = [(item, reward) for item, reward in zip(selections, rewards, strict=True) if reward is not None]
    parts = {
        "tokens": [float(item.tokens) for item in selections if item.ids],
        "reward_with": [reward for item, reward in rows if item.ids],
        "reward_without": [reward for item, reward in rows if item.withheld],
    }
    share = fmean(bool(item.ids) for item in selections)
    return {"injected_share": share} | {name: fmean(values) for name, values in parts.items() if values}


def library_metrics(counters: Counters) -> dict[str, float]:
    """Return the metrics of a library: records held, episodes stored per rollout, episodes held per stored one."""
    totals = (counters.rollouts, counters.stored, counters.pruned, counters.episodes)
    stats = ExperienceStats(*totals, avg_advantage=0.0, max_advantage=0.0, min_advantage=0.0)
    return {
        "size": float(counters.episodes + counters.lessons),
        "storage_efficiency": stats.storage_efficiency(),
        "retention_rate": stats.retention_rate(),
    }

"""Figures of a library: the guide's seven, and which prompts need more rollouts."""

from __future__ import annotations

from dataclasses import dataclass

from trl_grpo_ext.experience.stats import ExperienceStats
from trl_grpo_ext.experience.store import ExperienceStore


@dataclass(frozen=True)
class Coverage:
    """What is known of one prompt.

    Args:
        prompt: the prompt.
        episodes: episodes held.
        rollouts: rollouts seen within the age limit.
        mean_reward: their mean reward; None without any.
        spread: largest minus smallest reward; None without any.
    """

    prompt: str
    episodes: int
    rollouts: int
    mean_reward: float | None
    spread: float | None


def stats(store: ExperienceStore) -> ExperienceStats:
    """Return the guide's figures."""
    counters = store.counters()
    mean, high, low = store.rows(
        "SELECT avg(advantage), max(advantage), min(advantage) FROM records WHERE live AND kind = 'episode'"
    )[0]
    totals = (counters.rollouts, counters.stored, counters.pruned, counters.episodes)
    return ExperienceStats(*totals, mean or 0.0, high or 0.0, low or 0.0)


def coverage(store: ExperienceStore, minimum: int, limit: int | None) -> list[Coverage]:
    """Return the prompts that need rollouts most: those with fewer than `minimum` episodes first, the emptiest first,
    then those with the widest spread of rewards."""
    rows = store.rows(
        """
        SELECT prompts.text, coalesce(held, 0) AS held, coalesce(rollouts, 0), mean, spread FROM prompts
        LEFT JOIN (SELECT prompt, count(*) AS held FROM records WHERE live GROUP BY prompt) USING (prompt)
        LEFT JOIN (
          SELECT prompt, sum(rollouts) AS rollouts, sum(reward_sum) / nullif(sum(rewarded), 0) AS mean,
          max(reward_max) - min(reward_min) AS spread FROM groups GROUP BY prompt
        ) USING (prompt)
        WHERE held IS NOT NULL OR rollouts IS NOT NULL
        ORDER BY min(coalesce(held, 0), ?), spread DESC, prompt LIMIT ?
        """,
        (minimum, -1 if limit is None else limit),
    )
    return [Coverage(*row) for row in rows]

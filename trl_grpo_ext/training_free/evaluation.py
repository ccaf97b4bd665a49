"""How well a model does with given lessons: mean reward and pass@k. Failed rollouts are in the denominators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from trl_grpo_ext.estimation import pass_at_k
from trl_grpo_ext.training_free.rollouts import Rollout, grouped


@dataclass(frozen=True)
class Evaluation:
    """Rewards of an evaluation.

    Args:
        rewards: by problem id, one per sample.
        failed: rollouts whose call failed; they count with the reward of a failure.
        unjudged: rollouts that the reward could not judge; likewise.
    """

    rewards: dict[str, tuple[float, ...]]
    failed: int
    unjudged: int

    @property
    def mean(self) -> float:
        """Mean@k: the mean over problems of the mean over samples."""
        return fmean(fmean(values) for values in self.rewards.values())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over problems; infinite for one problem."""
        means = [fmean(values) for values in self.rewards.values()]
        return stdev(means) / sqrt(len(means)) if len(means) > 1 else float("inf")

    def pass_at(self, k: int, threshold: float = 1.0) -> float:
        """Return pass@k: the chance that one of k samples has a reward of at least `threshold`.

        Raises:
            ValueError: more than there are samples, or fewer than 1.
        """
        samples = min(len(values) for values in self.rewards.values())
        if not 1 <= k <= samples:
            raise ValueError(f"k must be from 1 to the number of samples, {samples}, not {k!r}.")
        return fmean(
            pass_at_k(len(values), sum(value >= threshold for value in values), k) for values in self.rewards.values()
        )


def evaluation_of(rollouts: Sequence[Rollout]) -> Evaluation:
    """Return the evaluation of rollouts."""
    rewards = {group[0].problem.id: tuple(rollout.reward for rollout in group) for group in grouped(rollouts)}
    failed = sum(bool(rollout.error) for rollout in rollouts)
    return Evaluation(rewards, failed, sum(not item.judged and not item.error for item in rollouts))

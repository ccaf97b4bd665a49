"""What each lesson does to the reward, from rollouts that showed or hid it at random. Pure functions; NumPy only.

Every lesson is hidden from some rollouts of a problem at random, which makes the rollouts of every step an experiment
about all lessons at once. Rollouts are compared within their problem only: a problem on which the lesson was shown, or
hidden, every time says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from trl_grpo_ext.estimation import t_quantile


@dataclass(frozen=True)
class Inclusion:
    """One rollout.

    Args:
        problem: id; rollouts of one problem are compared with one another.
        shown: ids of the lessons that stood in its prompt.
        reward: of the rollout; that of a failure where it failed.
    """

    problem: str
    shown: frozenset[str]
    reward: float


@dataclass(frozen=True)
class Usefulness:
    """The effect of one lesson on the reward.

    Args:
        lesson: id.
        effect: mean reward with it minus without it, within problems.
        standard_error: of the effect, robust to differences among problems, at least (range of rewards) / (2 rollouts);
            infinite where nothing can be said: below two informative problems, or no two rewards differ.
        lower: lower end of the interval, by Student's t, for all lessons of the call together.
        upper: upper end.
        posterior_mean: the effect, shrunk to 0 by the prior.
        posterior_deviation: standard deviation of the posterior.
        probability_harmful: posterior probability that the effect is below 0.
        shown: rollouts with it, on informative problems.
        hidden: rollouts without it, on the same problems.
        problems: informative problems: it was shown in some rollouts, and hidden in others.
    """

    lesson: str
    effect: float
    standard_error: float
    lower: float
    upper: float
    posterior_mean: float
    posterior_deviation: float
    probability_harmful: float
    shown: int
    hidden: int
    problems: int

    @property
    def harmful(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.upper < 0

    @property
    def useful(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.lower > 0


def lesson_usefulness(
    rollouts: Sequence[Inclusion], lessons: Iterable[str], alpha: float = 0.05, prior_deviation: float = 0.1
) -> dict[str, Usefulness]:
    """Return the usefulness of each lesson.

    With z = 1 where the lesson was shown and bars for means within the problem, the effect is
    sum (z - z̄) (r - r̄) / sum (z - z̄)^2. Its variance is that of the jackknife over problems: with e_p the effect
    without problem p, (P - 1) / P sum_p (e_p - effect)^2. Intervals are at 1 - alpha / (number of lessons): Bonferroni.
    The posterior is normal, with the prior N(0, prior_deviation^2). The interval is of a fixed sample: it does not hold
    at every look, as the bounds of the gate do.

    Args:
        rollouts: all that are to count. Lessons must have been hidden at random, whatever else was shown.
        lessons: ids to report on.
        alpha: probability that the interval of any lesson misses its effect.
        prior_deviation: how large effects are expected to be, in the unit of the reward.

    Raises:
        ValueError: alpha out of (0, 1), a prior deviation that is not positive, or a reward that is not finite.
    """
    names = sorted(set(lessons))
    if not 0 < alpha < 1 or not prior_deviation > 0:
        raise ValueError(f"alpha must be in (0, 1) and prior_deviation above 0, not {alpha} and {prior_deviation}.")
    wrong = next((item for item in rollouts if not math.isfinite(item.reward)), None)
    if wrong is not None:
        raise ValueError(f"rewards must be finite; one of problem {wrong.problem!r} is {wrong.reward}.")
    level = 1 - alpha / (2 * max(1, len(names)))
    return {name: _usefulness(rollouts, name, level, prior_deviation) for name in names}


def _usefulness(rollouts: Sequence[Inclusion], lesson: str, level: float, prior: float) -> Usefulness:
    blocks = _informative(rollouts, lesson)
    shown = sum(int(with_it.sum()) for with_it, _ in blocks)
    hidden = sum(len(with_it) for with_it, _ in blocks) - shown
    effect, error = _effect(blocks)
    if math.isinf(error):
        return Usefulness(lesson, effect, error, -error, error, 0.0, prior, 0.5, shown, hidden, len(blocks))
    reach = t_quantile(level, len(blocks) - 1) * error
    weight = prior**2 / (prior**2 + error**2)
    mean, deviation = weight * effect, math.sqrt(weight) * error
    harm = NormalDist(mean, deviation).cdf(0.0)
    bounds = (effect - reach, effect + reach)
    return Usefulness(lesson, effect, error, *bounds, mean, deviation, harm, shown, hidden, len(blocks))


_Block = tuple[NDArray[np.bool_], NDArray[np.float64]]


def _informative(rollouts: Sequence[Inclusion], lesson: str) -> list[_Block]:
    problems: dict[str, list[tuple[bool, float]]] = {}
    for item in rollouts:
        problems.setdefault(item.problem, []).append((lesson in item.shown, item.reward))
    blocks = [
        (np.array([with_it for with_it, _ in rows]), np.array([r for _, r in rows])) for rows in problems.values()
    ]
    return [block for block in blocks if block[0].any() and not block[0].all()]


def _effect(blocks: Sequence[_Block]) -> tuple[float, float]:
    """The effect and its standard error; an infinite one where nothing can be said."""
    if not blocks:
        return 0.0, math.inf
    centred = [(with_it - with_it.mean(), rewards - rewards.mean()) for with_it, rewards in blocks]
    weights = np.array([float(z @ z) for z, _ in centred])
    products = np.array([float(z @ r) for z, r in centred])
    effect, floor = float(products.sum() / weights.sum()), _rounding_error(blocks)
    if len(blocks) < 2 or floor == 0:
        return effect, math.inf
    without_one = (products.sum() - products) / (weights.sum() - weights)
    deviations = float(((without_one - effect) ** 2).sum())
    return effect, max(floor, math.sqrt((1 - 1 / len(blocks)) * deviations))


def _rounding_error(blocks: Sequence[_Block]) -> float:
    """Half a rollout of difference: a sample in which all problems agree is no proof that problems always do."""
    rewards = np.concatenate([rewards for _, rewards in blocks])
    return float(rewards.max() - rewards.min()) / (2 * len(rewards))

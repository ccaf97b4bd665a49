"""Confidence intervals of a mean over problems and of a difference paired by problem. Standard library only.

The problem is the unit: samples of one problem are alike, and counting each as its own would make every interval too
narrow (arXiv 2411.00640, section 2.2).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist, fmean, variance

from trl_grpo_ext.estimation import t_quantile

PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its interval; `low` and `high` are None where one problem gives no interval."""

    value: float
    low: float | None
    high: float | None
    problems: int


@dataclass(frozen=True)
class Difference:
    """A mean difference over problems (first minus second).

    `better` and `worse` count the problems on which the first is better or worse; `p_value` is that of a two-sided
    sign-flip permutation test of "no difference".
    """

    value: float
    low: float | None
    high: float | None
    problems: int
    better: int
    worse: int
    p_value: float


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be between 0 and 1, such as 0.95, not {level!r}.")


def _wilson(share: float, size: float, z: float) -> tuple[float, float]:
    centre = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return max(0.0, centre - half), min(1.0, centre + half)


def effective_size(values: Sequence[float], samples: int, level: float = 0.95) -> float:
    r"""Return how many independent right-or-wrong samples would give a mean as sure as this one (the design effect).

    n_eff = p (1 - p) / (s^2 / m) (z / t_{m - 1})^2, at most the number of samples, as Korn and Graubard (1998) have it
    for clustered samples. Where every problem is right or wrong as a whole, and for one problem, it is m: then the
    interval is Wilson's as published.
    """
    share, count = fmean(values), len(values)
    if count == 1 or all(value in (0.0, 1.0) for value in values):
        return count
    spread, z = variance(values) / count, NormalDist().inv_cdf(0.5 + level / 2)
    factor = (z / t_quantile(0.5 + level / 2, count - 1)) ** 2
    return factor * min(share * (1 - share) / spread if spread > 0 else samples, samples)


def mean_interval(values: Sequence[float], *, level: float = 0.95, samples: int | None = None) -> Estimate:
    r"""Return the mean over problems and its confidence interval, clustered by problem.

    For values in [0, 1]: Wilson's score interval at the effective sample size (`effective_size`), which does not
    shrink to nothing where all problems agree. For others: m -+ t_{m - 1} s / sqrt(m), and none for one problem.

    Args:
        values: one figure per problem, such as its pass@k.
        level: confidence, 0.95 by default.
        samples: all samples together; by default one per problem.

    Raises:
        ValueError: no value, or a level out of range.
    """
    _check_level(level)
    if not values:
        raise ValueError("values must hold the figure of at least one problem.")
    mean, count = fmean(values), len(values)
    if all(0.0 <= value <= 1.0 for value in values):
        z = NormalDist().inv_cdf(0.5 + level / 2)
        return Estimate(mean, *_wilson(mean, effective_size(values, samples or count, level), z), count)
    if count == 1:
        return Estimate(mean, None, None, 1)
    half = t_quantile(0.5 + level / 2, count - 1) * sqrt(variance(values) / count)
    return Estimate(mean, mean - half, mean + half, count)


def _bounded_difference(differences: Sequence[float], level: float) -> tuple[float, float]:
    """Agresti and Min's interval: half a problem more in each of the four cells (both, either, none right)."""
    size = len(differences) + 2
    mean = sum(differences) / size
    spread = (sum(value * value for value in differences) + 1) / size - mean * mean
    half = NormalDist().inv_cdf(0.5 + level / 2) * sqrt(max(spread, 0.0) / size)
    return max(-1.0, mean - half), min(1.0, mean + half)


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """Return the p value of "the sign of each difference is chance": exact up to 12 of them, else by draws.

    10,000 draws with a fixed seed, fewer (at least 1,000) for more than 500 problems.
    """
    moved = [abs(value) for value in differences if value]
    observed = abs(sum(differences)) - 1e-12
    if len(moved) <= 12:
        sums = [0.0]
        for value in moved:
            sums = [total + sign * value for total in sums for sign in (1, -1)]
        return sum(abs(total) >= observed for total in sums) / len(sums)
    # About a second at most, however many problems there are.
    draws, rounds = random.Random(0), max(1000, min(PERMUTATIONS, 5_000_000 // len(moved)))
    extreme = sum(
        abs(sum(value if draws.getrandbits(1) else -value for value in moved)) >= observed for _ in range(rounds)
    )
    return (extreme + 1) / (rounds + 1)


def paired_difference(first: Sequence[float], second: Sequence[float], *, level: float = 0.95) -> Difference:
    r"""Return the mean difference, first minus second, of two runs on the same problems, with its interval.

    For values in [0, 1]: the interval of Agresti and Min (2005) for paired proportions, (sum d) / (m + 2) -+ z sqrt(((sum
    d^2 + 1) / (m + 2) - mean^2) / (m + 2)), which is not empty where the runs agree everywhere. For others: the paired t
    interval, and none for one problem.

    Args:
        first: one figure per problem.
        second: the other run's, in the same order.
        level: confidence, 0.95 by default.

    Raises:
        ValueError: no problem, not the same number of them, or a level out of range.
    """
    _check_level(level)
    if not first or len(first) != len(second):
        raise ValueError(f"first and second must hold one figure per problem, not {len(first)} and {len(second)}.")
    differences = [one - other for one, other in zip(first, second, strict=True)]
    mean, count = fmean(differences), len(differences)
    low: float | None = None
    high: float | None = None
    if all(0.0 <= value <= 1.0 for value in (*first, *second)):
        low, high = _bounded_difference(differences, level)
    elif count > 1:
        half = t_quantile(0.5 + level / 2, count - 1) * sqrt(variance(differences) / count)
        low, high = mean - half, mean + half
    better, worse = sum(value > 0 for value in differences), sum(value < 0 for value in differences)
    return Difference(mean, low, high, count, better, worse, sign_flip_p_value(differences))

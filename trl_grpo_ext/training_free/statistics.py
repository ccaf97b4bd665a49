"""Confidence bounds that hold at every look, for means of bounded values. Pure functions; NumPy only.

A bet of the fraction f against "the mean is at most m" multiplies the capital by 1 + f (x - m) / (m - low) with every
value x. Were the claim true, the capital would be a non-negative supermartingale, and by Ville's inequality would ever
reach 1/alpha with a probability of at most alpha, however often one looks and whenever one stops. The lower bound is
the largest m whose capital has reached 1/alpha: a confidence sequence by betting (Waudby-Smith and Ramdas, arXiv
2010.09686, section 4), with a mixture over fixed fractions in place of one that is tuned on the way (the method of
mixtures; Orabona and Jun, arXiv 2110.14099). The capital of a mixture does not depend on the order of the values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = Sequence[float] | NDArray[np.float64]

# Fractions that are always in the mixture, dense where differences of rewards put the best one (effect / variance).
FRACTIONS = (0.05, 0.15, 0.3, 0.5, 0.7, 0.9)
# What the planned fractions take for the standard deviation, in halves of the range. A guess costs power at worst.
TYPICAL_SPREAD = 0.35
_PLANNED, _PLANNED_EARLY = 0.6, 0.2
_HALVINGS = 60


@dataclass(frozen=True)
class Bets:
    """A mixture of bets, to be fixed before the first value is seen.

    Args:
        fractions: (J,), of the capital that is staked, each in [0, 1).
        weights: (J,), shares of the capital; they add up to 1.
    """

    fractions: tuple[float, ...] = FRACTIONS
    weights: tuple[float, ...] = (1 / len(FRACTIONS),) * len(FRACTIONS)


def planned_bets(count: int, alpha: float) -> Bets:
    """Return the bets for `count` values: most of the capital on the fraction that does best after so many.

    f = sqrt(2 log(1/alpha) / n) / spread, at most 0.9 (arXiv 2010.09686, section 3.2, for a fixed n): three fifths for
    n = count, one fifth for a quarter of it, and the rest even on FRACTIONS.

    Args:
        count: of the values that are planned, at least 1.
        alpha: of the bound.
    """

    def best(values: float) -> float:
        return min(0.9, math.sqrt(-2 * math.log(alpha) / values) / TYPICAL_SPREAD)

    rest = (1 - _PLANNED - _PLANNED_EARLY) / len(FRACTIONS)
    weights = (_PLANNED, _PLANNED_EARLY, *(rest for _ in FRACTIONS))
    return Bets((best(count), best(count / 4), *FRACTIONS), weights)


def log_capital(values: Values, mean: float, low: float, bets: Bets | None = None) -> float:
    """Return the log of the capital won by betting that the true mean is above `mean`; it starts at 0.

    log sum_j w_j prod_i (1 + f_j (x_i - mean) / (mean - low)); it falls as `mean` grows.

    Args:
        values: (n,), none below `low`.
        mean: the claim that is bet against, above `low`.
        low: the least value that is possible.
        bets: the mixture; None shares the capital evenly among FRACTIONS.
    """
    bets = bets or Bets()
    gains = (np.asarray(values, dtype=np.float64) - mean) / (mean - low)
    logs = np.log1p(np.outer(bets.fractions, gains)).sum(axis=1)
    return float(np.logaddexp.reduce(logs + np.log(bets.weights)))


def lower_bound(values: Values, alpha: float, low: float, high: float, bets: Bets | None = None) -> float:
    """Return the lower confidence bound of the mean.

    The probability that it is above the true mean at any number of values, now or later, is at most `alpha`, if each
    value has the true mean given those before it.

    Args:
        values: (n,), within [low, high]; may be empty.
        alpha: in (0, 1).
        low: the least value that is possible.
        high: the greatest.
        bets: the mixture.

    Raises:
        ValueError: a value out of the range, or alpha out of (0, 1).
    """
    found = _checked(values, alpha, low, high)
    if not len(found) or found.mean() <= low:
        return low
    # At the mean of the sample the capital is below 1, near `low` it is without bound.
    below, above, wanted = low, float(found.mean()), -math.log(alpha)
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        if middle in (below, above):
            break
        below, above = (middle, above) if log_capital(found, middle, low, bets) >= wanted else (below, middle)
    return below


def upper_bound(values: Values, alpha: float, low: float, high: float, bets: Bets | None = None) -> float:
    """Return the upper confidence bound of the mean: `lower_bound` of the negated values, negated."""
    return -lower_bound(-_checked(values, alpha, low, high), alpha, -high, -low, bets)


def detectable_mean(
    spread: float, count: int, alpha: float, low: float, high: float, bets: Bets | None = None, power: float = 0.8
) -> float:
    """Return the least true mean whose lower bound is above 0 with the probability `power`, approximately.

    The distance of the bound from the mean of `count` values, half of them `spread` above it and half below, plus
    z_power spread / sqrt(count). At most `high`, which then says that no mean at all is detected.

    Args:
        spread: standard deviation of the values.
        count: how many there are.
        alpha: of the bound, in (0, 1).
        low: the least value that is possible, below 0.
        high: the greatest, above 0.
        bets: the mixture.
        power: in (0, 1).
    """
    if count < 2:
        return high
    reach = min(spread, -low, high)
    values = np.resize([reach, -reach], count)
    radius = float(values.mean()) - lower_bound(values, alpha, low, high, bets)
    return min(high, radius + NormalDist().inv_cdf(power) * spread / math.sqrt(count))


def _checked(values: Values, alpha: float, low: float, high: float) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be above 0 and below 1, not {alpha}.")
    # Means of a few rewards miss the range by rounding.
    slack = 1e-9 * (high - low)
    wrong = found[~((found >= low - slack) & (found <= high + slack))]
    if len(wrong):
        raise ValueError(f"values must be within [{low}, {high}], but one is {wrong[0]}.")
    return np.clip(found, low, high)

"""Estimates that several features share: pass@k, pass^k and Student's t. Pure functions, standard library only."""

from __future__ import annotations

from functools import lru_cache
from math import atan, comb, cos, exp, lgamma, pi, sqrt, tan
from statistics import NormalDist

_STEPS = 1000


def check_counts(samples: int, correct: int, k: int) -> None:
    """Refuse what is no count of right samples among others.

    Raises:
        ValueError: k or `correct` out of range.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k must be from 1 to the number of samples ({samples}), not {k}.")
    if not 0 <= correct <= samples:
        raise ValueError(f"correct must be from 0 to the number of samples ({samples}), not {correct}.")


def pass_at_k(samples: int, correct: int, k: int) -> float:
    r"""Unbiased estimate of the chance that at least one of k samples is right (arXiv 2107.03374, equation 1).

    pass@k = 1 - C(n - c, k) / C(n, k), with whole numbers, so without the rounding of long products.

    Args:
        samples: n, samples of the problem.
        correct: c, the right ones among them.
        k: from 1 to n.

    Raises:
        ValueError: k or `correct` out of range.
    """
    check_counts(samples, correct, k)
    return 1 - comb(samples - correct, k) / comb(samples, k)


def pass_hat_k(samples: int, correct: int, k: int) -> float:
    r"""Unbiased estimate of the chance that all of k samples are right (tau-bench, arXiv 2406.12045).

    pass^k = C(c, k) / C(n, k). Arguments and errors: `pass_at_k`.
    """
    check_counts(samples, correct, k)
    return comb(correct, k) / comb(samples, k)


@lru_cache
def t_quantile(probability: float, degrees: int) -> float:
    r"""Return t with P(T <= t) = probability for Student's t distribution.

    P(|T| <= t) = 2 Gamma((v + 1) / 2) / (sqrt(pi) Gamma(v / 2)) * integral of cos^(v - 1) from 0 to atan(t / sqrt(v)),
    by Simpson's rule, solved by bisection; the normal quantile above 1,000 degrees of freedom. Of a two-sided interval
    of confidence c it is the quantile of (1 + c) / 2.

    Raises:
        ValueError: a probability out of (0, 1), or fewer than 1 degree of freedom.
    """
    if not 0.0 < probability < 1.0 or degrees < 1:
        raise ValueError(f"t_quantile needs a probability in (0, 1) and degrees >= 1, not {probability}, {degrees}.")
    if degrees > 1000:
        return NormalDist().inv_cdf(probability)
    inside = abs(2 * probability - 1)
    scale = 2 * exp(lgamma((degrees + 1) / 2) - lgamma(degrees / 2)) / sqrt(pi)
    low, high = 0.0, atan(min(1e12, 1e6 / (1 - inside)))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if scale * _integral(degrees - 1, middle) < inside else (low, middle)
    found = tan((low + high) / 2) * sqrt(degrees)
    return found if probability >= 0.5 else -found


def _integral(power: int, end: float) -> float:
    width = end / _STEPS
    inner = sum((4 if place % 2 else 2) * cos(place * width) ** power for place in range(1, _STEPS))
    return width / 3 * (1 + inner + cos(end) ** power)

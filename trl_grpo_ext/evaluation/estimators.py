"""What n samples of one problem say about k of them. Pure functions, standard library only."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from math import comb

from trl_grpo_ext.estimation import check_counts, pass_at_k, pass_hat_k

__all__ = ["majority_at_k", "pass_at_k", "pass_hat_k"]

MOST_SUBSETS = 2000


def _vote(answers: Iterable[str | None], worth: dict[str, float]) -> float:
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    winners = [answer for answer, count in counts.items() if count == most]
    return sum(worth[answer] for answer in winners) / len(winners)


def _subsets(answers: Sequence[str | None], k: int) -> list[tuple[str | None, ...]]:
    if comb(len(answers), k) <= MOST_SUBSETS:
        return list(combinations(answers, k))
    # Fixed: the same samples give the same figure in every run and on every rank.
    draws = random.Random(0)
    return [tuple(draws.sample(answers, k)) for _ in range(MOST_SUBSETS)]


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """Return maj@k: the chance that the most frequent answer of k samples is right (self-consistency, arXiv 2203.11171).

    The mean over all sets of k of the n samples; over 2,000 of them, drawn with a fixed seed, where there are more.
    Among answers that are equally frequent one is drawn by chance, of which this is the expectation. A sample without
    an answer has no vote; k samples without any give 0.

    Args:
        answers: one per sample; None where none was found.
        correct: whether each sample is right; the worth of an answer is the share of right ones among its samples.
        k: from 1 to n.

    Raises:
        ValueError: k out of range, or not as many `correct` as `answers`.
    """
    if len(answers) != len(correct):
        raise ValueError(f"correct must have one entry per answer ({len(answers)}), not {len(correct)}.")
    check_counts(len(answers), sum(correct), k)
    right = Counter(answer for answer, is_right in zip(answers, correct, strict=True) if is_right)
    worth = {answer: right[answer] / count for answer, count in Counter(answers).items() if answer is not None}
    votes = [_vote(subset, worth) for subset in _subsets(answers, k)]
    return sum(votes) / len(votes)

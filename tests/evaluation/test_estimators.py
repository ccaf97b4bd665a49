"""pass@k, pass^k and maj@k against brute force over all sets of k samples, and against published figures."""

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext.evaluation import estimators, majority_at_k, pass_at_k, pass_hat_k


@st.composite
def samples(draw):
    right = draw(st.lists(st.booleans(), min_size=1, max_size=9))
    return right, draw(st.integers(1, len(right)))


@given(samples())
def test_pass_at_k_and_pass_hat_k_are_the_means_over_all_sets(case):
    right, k = case
    sets = list(combinations(right, k))
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(sum(map(any, sets)) / len(sets))
    assert pass_hat_k(len(right), sum(right), k) == pytest.approx(sum(map(all, sets)) / len(sets))


def test_pass_at_k_is_the_product_of_the_paper():
    """The numerically stable form of arXiv 2107.03374, figure 3."""
    for samples, correct, k in ((200, 37, 10), (200, 1, 100), (10, 10, 3), (10, 0, 3)):
        product = 1.0
        for number in range(samples - correct + 1, samples + 1):
            product *= 1 - k / number
        expected = 1.0 if samples - correct < k else 1 - product
        assert pass_at_k(samples, correct, k) == pytest.approx(expected, abs=1e-12)


def test_the_naive_estimate_is_biased_and_this_one_is_not():
    draws, chance, k, n = random.Random(0), 0.3, 4, 8
    counts = [sum(draws.random() < chance for _ in range(n)) for _ in range(20_000)]
    truth = 1 - (1 - chance) ** k
    assert sum(pass_at_k(n, c, k) for c in counts) / len(counts) == pytest.approx(truth, abs=0.005)
    assert sum(1 - (1 - c / n) ** k for c in counts) / len(counts) < truth - 0.02


def votes(answers, right, k):
    """By hand: each set votes, ties are shared."""
    worth = {answer: right[answers.index(answer)] for answer in set(answers)}
    found = []
    for subset in combinations(answers, k):
        counts = {answer: subset.count(answer) for answer in subset if answer is not None}
        best = [answer for answer in counts if counts[answer] == max(counts.values())]
        found.append(sum(worth[answer] for answer in best) / len(best) if best else 0.0)
    return sum(found) / len(found)


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=7), st.data())
def test_majority_is_the_mean_vote_over_all_sets(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    right = [answer == "1" for answer in answers]
    assert majority_at_k(answers, right, k) == pytest.approx(votes(answers, right, k))


def test_majority_of_many_samples_is_drawn_the_same_every_time(monkeypatch):
    answers = ["1"] * 5 + ["2"] * 4 + ["3"] * 3 + [None] * 2
    right = [answer == "1" for answer in answers]
    exact = majority_at_k(answers, right, 5)
    monkeypatch.setattr(estimators, "MOST_SUBSETS", 1500)
    drawn = majority_at_k(answers, right, 5)
    assert drawn != exact and drawn == pytest.approx(exact, abs=0.04)
    assert drawn == majority_at_k(answers, right, 5)


def test_wrong_numbers_are_refused():
    for samples, correct, k in ((4, 2, 0), (4, 2, 5), (4, 5, 1), (4, -1, 1)):
        with pytest.raises(ValueError, match="must be from"):
            pass_at_k(samples, correct, k)
        with pytest.raises(ValueError, match="must be from"):
            pass_hat_k(samples, correct, k)
    with pytest.raises(ValueError, match="one entry per answer"):
        majority_at_k(["1"], [True, False], 1)

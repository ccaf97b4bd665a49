"""Intervals: published values, coverage by simulation, and what happens where all problems agree."""

import random
from itertools import product

import pytest

from trl_grpo_ext.estimation import t_quantile
from trl_grpo_ext.evaluation import mean_interval, paired_difference
from trl_grpo_ext.evaluation.intervals import effective_size, sign_flip_p_value


@pytest.mark.parametrize(
    ("level", "degrees", "value"),
    # Tables of Student's t.
    [
        (0.95, 1, 12.7062),
        (0.95, 2, 4.3027),
        (0.95, 9, 2.2622),
        (0.95, 30, 2.0423),
        (0.99, 4, 4.6041),
        (0.9, 120, 1.6577),
    ],
)
def test_student_s_t_is_that_of_the_tables(level, degrees, value):
    assert t_quantile(0.5 + level / 2, degrees) == pytest.approx(value, abs=6e-5)
    assert t_quantile(0.5 - level / 2, degrees) == pytest.approx(-value, abs=6e-5)


def test_wilson_s_interval_is_that_of_the_literature():
    """Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for right, size, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = mean_interval([1.0] * right + [0.0] * (size - right))
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_samples_of_one_problem_do_not_count_as_problems():
    """40 problems with 25 samples each that are all alike say as much as 40 samples."""
    alike = [1.0] * 20 + [0.0] * 20
    one, many = mean_interval(alike), mean_interval(alike, samples=1000)
    assert (one.low, one.high) == (many.low, many.high)
    mixed = mean_interval([0.5] * 40, samples=1000)
    assert mixed.high - mixed.low == pytest.approx(2 * t_quantile(0.975, 39) * (0.25 / 1000) ** 0.5, rel=0.01)
    assert effective_size([0.5] * 40, 1000) == pytest.approx(1000 * (1.959964 / t_quantile(0.975, 39)) ** 2)


def covered(simulate, truth, runs=600):
    hits = 0
    for seed in range(runs):
        found = simulate(random.Random(seed))
        hits += found.low <= truth <= found.high
    return hits / runs


@pytest.mark.parametrize("problems", [12, 60])
def test_the_interval_of_a_mean_covers_the_truth(problems):
    """Problems of unlike difficulty (mean 0.3), 4 samples of each. 95 % +- 3 standard errors of 600 runs: 2.7 %."""

    def simulate(draws):
        chances = [draws.betavariate(0.6, 1.4) for _ in range(problems)]
        values = [sum(draws.random() < chance for _ in range(4)) / 4 for chance in chances]
        return mean_interval(values, samples=4 * problems)

    assert 0.91 <= covered(simulate, 0.3) <= 0.985


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_the_interval_of_a_difference_covers_the_truth_and_pairing_makes_it_narrow(gain):
    widths = []

    def simulate(draws):
        chances = [draws.choice((0.05, 0.85)) for _ in range(40)]
        first = [float(draws.random() < chance + gain) for chance in chances]
        second = [float(draws.random() < chance) for chance in chances]
        found = paired_difference(first, second)
        widths.append((found.high - found.low, sum(end.high - end.low for end in map(mean_interval, (first, second)))))
        return found

    assert 0.92 <= covered(simulate, gain) <= 0.99
    assert sum(width < alone for width, alone in widths) > 0.99 * len(widths)


def test_agreement_everywhere_is_no_certainty():
    found = paired_difference([1.0] * 10, [1.0] * 10)
    assert found.value == 0.0 and found.low < -0.05 and found.high > 0.05 and found.p_value == 1.0
    whole = mean_interval([1.0] * 10)
    assert whole.value == whole.high == 1.0 and whole.low == pytest.approx(0.722, abs=1e-3)


def test_agresti_and_min_s_example():
    """Agresti and Min (2005), Statistics in Medicine 24: Wald + 2 for b = 1, c = 5, n = 100: -0.0923 to 0.0139."""
    first, second = [1.0] + [0.0] * 5 + [1.0] * 94, [0.0] + [1.0] * 5 + [1.0] * 94
    found = paired_difference(first, second)
    by_hand = -4 / 102, 1.959964 * ((7 / 102 - (4 / 102) ** 2) / 102) ** 0.5
    assert (found.low, found.high) == pytest.approx((by_hand[0] - by_hand[1], by_hand[0] + by_hand[1]))
    assert (found.better, found.worse, found.problems) == (1, 5, 100)


def test_scores_outside_0_to_1_take_the_t_interval():
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.value, found.low) == pytest.approx((2.0, 2.0 - 4.302653 / 3**0.5))
    difference = paired_difference([3.0, 2.0, 5.0], [1.0, 1.0, 2.0])
    assert (difference.value, difference.high) == pytest.approx((2.0, 2.0 + 4.302653 / 3**0.5))
    alone = paired_difference([3.0], [1.0])
    assert (alone.low, alone.high) == (None, None) == (mean_interval([2.0]).low, mean_interval([2.0]).high)


def test_the_permutation_test_is_all_signs_by_hand():
    values = [0.5, -0.25, 1.0, 0.75, 0.0]
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=5)]
    assert sign_flip_p_value(values) == pytest.approx(sum(total >= 2.0 - 1e-9 for total in sums) / len(sums))
    assert sign_flip_p_value([0.1] * 30) < 1e-3
    assert sign_flip_p_value([0.1, -0.1] * 15) == 1.0
    assert sign_flip_p_value([]) == 1.0


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least one problem"):
        mean_interval([])
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval([1.0], level=95)
    with pytest.raises(ValueError, match="one figure per problem"):
        paired_difference([1.0], [1.0, 0.0])
    for probability, degrees in ((0.975, 0), (0.0, 5), (1.0, 5)):
        with pytest.raises(ValueError, match="degrees >= 1"):
            t_quantile(probability, degrees)

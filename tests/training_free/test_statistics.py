"""Confidence sequences: what holds for every sample (properties), and how often they are wrong (simulation)."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.estimation import t_quantile
from trl_grpo_ext.training_free.statistics import (
    Bets,
    detectable_mean,
    log_capital,
    lower_bound,
    planned_bets,
    upper_bound,
)

VALUES = st.lists(st.floats(-1, 1), max_size=40)


@settings(deadline=None)
@given(VALUES, st.floats(0.001, 0.5))
def test_bounds_enclose_the_mean_of_the_sample_and_stay_in_the_range(values, alpha):
    lower, upper = lower_bound(values, alpha, -1, 1), upper_bound(values, alpha, -1, 1)
    mean = sum(values) / len(values) if values else 0.0
    assert -1 <= lower <= mean + 1e-12 and mean - 1e-12 <= upper <= 1


@settings(deadline=None)
@given(VALUES.filter(len), st.randoms(use_true_random=False))
def test_order_does_not_matter(values, random):
    mixed = list(values)
    random.shuffle(mixed)
    assert lower_bound(mixed, 0.05, -1, 1) == pytest.approx(lower_bound(values, 0.05, -1, 1), abs=1e-9)


@settings(deadline=None)
@given(VALUES.filter(len), st.floats(0.1, 10), st.floats(-5, 5))
def test_unit_and_origin_of_the_values_do_not_matter(values, scale, shift):
    moved = lower_bound([scale * value + shift for value in values], 0.05, shift - scale, shift + scale)
    assert moved == pytest.approx(scale * lower_bound(values, 0.05, -1, 1) + shift, abs=1e-6 * (1 + scale))


@settings(deadline=None)
@given(VALUES.filter(len), st.floats(-0.99, 0.99), st.floats(0.001, 0.5))
def test_bound_is_where_the_capital_reaches_its_target(values, mean, alpha):
    lower = lower_bound(values, alpha, -1, 1)
    if abs(lower - mean) > 1e-9:
        assert (lower > mean) == (log_capital(values, mean, -1) >= -math.log(alpha))


def test_capital_is_the_mixture_of_the_products():
    values, bets = [0.5, -0.25, 1.0], Bets((0.2, 0.6), (0.9, 0.1))
    products = [math.prod(1 + f * (x - 0.1) / 1.1 for x in values) for f in bets.fractions]
    assert log_capital(values, 0.1, -1, bets) == pytest.approx(math.log(0.9 * products[0] + 0.1 * products[1]))


@pytest.mark.parametrize("count", [1, 50, 600, 10**6])
def test_planned_bets_are_a_mixture_that_cannot_go_bankrupt(count):
    bets = planned_bets(count, 0.05)
    assert sum(bets.weights) == pytest.approx(1) and len(bets.weights) == len(bets.fractions)
    assert all(0 < fraction < 1 for fraction in bets.fractions)
    assert log_capital([], 0.0, -1, bets) == pytest.approx(0)


def test_plan_tightens_the_bound_at_the_planned_number():
    values = np.random.default_rng(0).normal(0.1, 0.35, 200).clip(-1, 1)
    planned = lower_bound(values, 0.05, -1, 1, planned_bets(200, 0.05))
    assert planned > lower_bound(values, 0.05, -1, 1) and planned > lower_bound(
        values, 0.05, -1, 1, planned_bets(10, 0.05)
    )


@pytest.mark.parametrize("bets", [Bets(), planned_bets(120, 0.2)], ids=["even", "planned"])
@pytest.mark.parametrize("make", ["two points", "skewed", "uniform"])
def test_lower_bound_is_wrong_at_any_look_less_often_than_alpha(make, bets):
    """1000 streams of 120 values, a look after each: the share of streams whose capital ever reaches 1/alpha."""
    rng, alpha, shape = np.random.default_rng(0), 0.2, (1000, 120)
    values = {
        "two points": rng.choice([-1.0, 1.0], shape),
        "skewed": np.where(rng.random(shape) < 0.9, 0.1, -0.9),
        "uniform": rng.uniform(-1, 1, shape),
    }[make]
    gains = np.log1p(np.multiply.outer(bets.fractions, values)).cumsum(axis=2)
    capital = np.logaddexp.reduce(gains + np.log(bets.weights)[:, None, None], axis=0)
    for row in (0, 1, 2):
        assert capital[row, -1] == pytest.approx(log_capital(values[row], 0.0, -1, bets))
    assert (capital.max(axis=1) >= -math.log(alpha)).mean() <= alpha


def test_bound_tightens_with_the_number_of_values_and_is_blind_to_none():
    rng = np.random.default_rng(1)
    widths = [0.3 - lower_bound(np.clip(rng.normal(0.3, 0.2, count), -1, 1), 0.05, -1, 1) for count in (20, 200, 2000)]
    assert widths[0] > 2 * widths[1] > 4 * widths[2] > 0
    assert lower_bound([], 0.05, -1, 1) == -1 and upper_bound([], 0.05, -1, 1) == 1
    assert lower_bound([-1.0] * 5, 0.05, -1, 1) == -1


@pytest.mark.parametrize("values, alpha", [([1.5], 0.05), ([math.nan], 0.05), ([0.1], 0.0), ([0.1], 1.0)])
def test_values_out_of_range_are_refused(values, alpha):
    with pytest.raises(ValueError, match="must be"):
        lower_bound(values, alpha, -1, 1)


def test_means_that_miss_the_range_by_rounding_are_not_refused():
    assert lower_bound([1 + 1e-12] * 3, 0.05, -1, 1) > -1


def test_detectable_mean_is_detected_with_about_its_power():
    """The mean of two-point values; 400 runs. The formula is an approximation, so within ten points of 0.8."""
    rng, count, spread = np.random.default_rng(0), 60, 0.4
    mean = detectable_mean(spread, count, 0.05, -1, 1)
    values = mean + spread * rng.choice([-1, 1], (400, count))
    hits = np.mean([log_capital(row, 0.0, -1) >= -math.log(0.05) for row in values])
    assert 0.7 < hits < 0.9


def test_detectable_mean_falls_with_the_number_and_rises_with_the_spread():
    means = [detectable_mean(0.4, count, 0.05, -1, 1) for count in (1, 2, 20, 200, 2000)]
    assert means == sorted(means, reverse=True) and means[0] == means[1] == 1
    assert detectable_mean(0.1, 50, 0.05, -1, 1) < detectable_mean(0.5, 50, 0.05, -1, 1)


@pytest.mark.parametrize(
    "probability, degrees, value",
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.3027),
        (0.975, 4, 2.7764),
        (0.995, 4, 4.6041),
        (0.975, 30, 2.0423),
        (0.05, 9, -1.8331),
    ],
)
def test_t_quantile_agrees_with_the_tables(probability, degrees, value):
    assert t_quantile(probability, degrees) == pytest.approx(value, abs=6e-5)


def test_t_quantile_refuses_what_has_none():
    with pytest.raises(ValueError, match="degrees >= 1"):
        t_quantile(0.975, 0)

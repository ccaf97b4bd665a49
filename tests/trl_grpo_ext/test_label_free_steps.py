"""Arithmetic steps are re-computed exactly, and what is not arithmetic is no step."""

import pickle
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext.rewards.label_free.arithmetic import MAX_STEPS, check_steps
from trl_grpo_ext.rewards.label_free.step_validity import StepValidityReward


@pytest.mark.parametrize(
    "text",
    [
        "3 + 4 = 7",
        "So she has 16 - 3 - 4 = 9 eggs.",
        "9 * $2 = $18 a day",
        "48/2 = <<48/2=24>>24 clips",
        "(2 + 3) * 4 = 20",
        "2 + 3 * 4 = 14",
        "1,200 / 4 = 300",
        "5 x 3 = 15, and so on",
        "4×5=20",
        "\\(6 \\times 7 = 42\\)",
        "10 / 4 = 5/2",
        "10 / 3 = 3.33",
        "20 / 3 = 6.67",
        "20 / 3 = 6.66",
        "-3 + 5 = 2",
        "3 - -5 = 8",
        "- 3 + 4 = 7",
        "0.1 + 0.2 = 0.3",
        "1\u22124 = -3",
        "7 - (2 - 1) = 6",
        "3 * 3 =9.",
        "Step 2: 3 + 4 = 7",
    ],
)
def test_right_steps(text):
    assert check_steps(text) == [True]


@pytest.mark.parametrize(
    "text", ["3 + 4 = 8", "5 / 0 = 0", "10 / 3 = 3.4", "10 / 3 = 3", "2 + 3 * 4 = 20", "1 + 1 = 3/2", "12*12=1440."]
)
def test_wrong_steps(text):
    assert check_steps(text) == [False]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 5",
        "2 x = 10",
        "2x + 3 = 7",
        "2x + 3 + 1 = 7",
        "x + 3 + 1 = 7",
        "y - 3 + 1 = 7",
        "2^3 + 1 = 9",
        "2**3 = 8",
        "10% * 50 = 5",
        "3/4 = 75%",
        "5! = 120",
        "sqrt(16) + 1",
        "3 + 4 apples = 7",
        "3 + 4 = 7 + x",
        "4 + 4 = 2a",
        "\\frac{1}{2} + 1 = 1.5",
        "7 = 7",
        "3 + = 7",
        "(3 + 4 = 7",
        "x2 + 1 = 3",
        "3 + 4 == 7",
        "3 + 4 <= 8",
        "a[1 + 1] = 3",
    ],
)
def test_what_is_no_step(text):
    assert check_steps(text) == []


def test_chains_and_texts():
    assert check_steps("2 + 3 = 5 = 10 / 2") == [True]
    assert check_steps("2 + 3 = 10 / 2 = 6") == [True, False]
    assert check_steps("1 + 1 = 2\n2 + 2 = 5\nThen 3 * 3 = 9.") == [True, False, True]


@given(st.integers(-999, 999), st.sampled_from("+-*/"), st.integers(-999, 999), st.integers(-2, 2))
def test_verdicts_equal_exact_arithmetic(a, operator, b, error):
    values = {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b) if b else None}
    claim = (values[operator] or 0) + error
    right = values[operator] is not None and error == 0
    assert check_steps(f"{a} {operator} {b} = {claim}") == [right]


@given(st.text("0123456789+-*/()=.,xX \n$^%ab", max_size=200) | st.text(max_size=200))
def test_any_text_is_answered(text):
    assert all(verdict in (True, False) for verdict in check_steps(text))


@pytest.mark.parametrize(
    "text",
    [
        "(" * 50_000 + "=1",
        "9*" * 25_000 + "9=1",
        "1+1=2 " * 9_000,
        "9" * 49_000 + "+1=2",
        "1=" * 25_000,
        "- " * 25_000,
        "1,000" * 10_000,
        "95*95*95*95*95*95*95=1\n" * 2000,
    ],
    ids=range(8),
)
def test_time_is_bounded(text):
    start = time.perf_counter()
    assert len(check_steps(text)) <= MAX_STEPS
    assert time.perf_counter() - start < 3


def test_the_bound_on_steps():
    assert check_steps("1+1=2\n" * 300) == [True] * MAX_STEPS


@pytest.mark.parametrize(("depth", "steps"), [(16, [True]), (17, [])])
def test_the_bound_on_depth(depth, steps):
    assert check_steps("(" * depth + "1 + 1" + ")" * depth + " = 2") == steps


def test_reward_is_the_share_of_right_steps():
    logged = {}
    reward = StepValidityReward()
    rewards = reward(completions=["1+1=2, 2+2=5", "no steps", "3*3=9"], log_metric=logged.__setitem__)
    assert rewards == [0.5, None, 1.0]
    assert logged == reward.last_metrics == {"step_validity/steps": 1.0}
    assert pickle.loads(pickle.dumps(reward))(completions=["1+1=2"]) == [1.0]


def lines(text):
    return [{"good": 1.0, "so": 0.25}.get(line) for line in text.splitlines()]


def test_own_checker_may_abstain():
    reward = StepValidityReward(lines, min_steps=2)
    assert reward(completions=["good\nso\nhm", "good\nhm"]) == [0.625, None]
    with pytest.raises(ValueError, match="from 0 to 1, or None, not 2"):
        StepValidityReward(lambda text: [2])(completions=["a"])
    with pytest.raises(ValueError, match="min_steps must be a whole number of at least 1, not 0"):
        StepValidityReward(min_steps=0)

"""`apply_reward_control`: what it keeps, what it breaks, and where its randomness comes from."""

import asyncio
import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext import apply_reward_control, check_reward_columns, exact_match, gsm8k_number

ROWS = [str(i) for i in range(40)]


def value(completions, **kwargs):
    """The completion as a number."""
    return [float(completion) for completion in completions]


async def slow_value(completions, **kwargs):
    return value(completions)


def controlled(control, seed=0, func=value):
    return apply_reward_control([func], control, seed)[0]


def test_none_returns_the_functions_themselves():
    assert apply_reward_control([value, exact_match], "none") == [value, exact_match]


def test_shuffled_permutes_within_the_call():
    shuffled = controlled("shuffled")
    first, second = shuffled(completions=ROWS), shuffled(completions=ROWS)
    assert sorted(first) == sorted(second) == value(ROWS)
    assert first != value(ROWS)
    assert first != second


@given(st.lists(st.integers(0, 9).map(str), max_size=20), st.integers(0, 5))
def test_shuffled_keeps_the_multiset(completions, seed):
    assert sorted(controlled("shuffled", seed)(completions=completions)) == sorted(value(completions))


def test_random_draws_from_the_rewards_of_the_call():
    draws = controlled("random")(completions=ROWS * 50)
    assert len(draws) == len(ROWS) * 50
    assert set(draws) == set(value(ROWS))
    assert sorted(draws) != value(sorted(ROWS * 50, key=float)), "drawn without replacement"


def mean(values):
    return sum(values) / len(values)


def covariance(first, second):
    return mean([one * other for one, other in zip(first, second, strict=True)]) - mean(first) * mean(second)


REWARDS = {
    "sparse": [1.0] + [0.0] * 31,
    "two groups of different difficulty": [0.9, 1.0, 0.8, 1.0, 0.1, 0.0, 0.2, 0.0],
    "wide": [-5.0, 0.0, 0.0, 1.0, 3.0, 100.0],
    "constant": [0.5] * 8,
}


@pytest.mark.parametrize("control", ["random", "shuffled"])
@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS)
def test_mean_and_spread_are_those_of_the_reward_and_nothing_else_is(control, rewards):
    """Over 4000 calls; the bounds are five standard errors of what a call of this size varies by."""
    func = controlled(control, func=value)
    calls = [func(completions=list(map(str, rewards))) for _ in range(4000)]
    pooled = [reward for call in calls for reward in call]
    variance = covariance(rewards, rewards)
    error = 5 * (variance / len(pooled)) ** 0.5 + 1e-12
    assert abs(mean(pooled) - mean(rewards)) <= error
    fourth = mean([(reward - mean(rewards)) ** 4 for reward in rewards])
    assert abs(covariance(pooled, pooled) - variance) <= 5 * (fourth / len(pooled)) ** 0.5 + error**2 + 1e-12
    # Of one call's covariance with the true rewards: zero on average, of either sign.
    covariances = [covariance(call, rewards) for call in calls]
    deviation = covariance(covariances, covariances) ** 0.5
    assert abs(mean(covariances)) <= 5 * deviation / len(calls) ** 0.5 + 1e-12


@pytest.mark.parametrize("control", ["random", "shuffled"])
def test_a_group_does_not_decide_either(control):
    """The first half of the rows is right, the second wrong: both halves get the same on average."""
    func = controlled(control)
    halves = [func(completions=["1"] * 4 + ["0"] * 4) for _ in range(4000)]
    easy, hard = mean([mean(call[:4]) for call in halves]), mean([mean(call[4:]) for call in halves])
    assert abs(easy - hard) < 0.05


def test_skipped_rows_stay_as_frequent():
    def skips(completions, **kwargs):
        return [None] * 10 + [1.0] * 30

    assert controlled("shuffled", func=skips)(completions=ROWS).count(None) == 10
    draws = [draw for _ in range(100) for draw in controlled("random", seed=_, func=skips)(completions=ROWS)]
    assert 0.2 < draws.count(None) / len(draws) < 0.3


@pytest.mark.parametrize("control", ["random", "shuffled"])
def test_global_random_state_is_neither_read_nor_changed(control):
    random.seed(1)
    state = random.getstate()
    first = controlled(control)(completions=ROWS)
    assert random.getstate() == state
    random.seed(2)
    assert controlled(control)(completions=ROWS) == first


@pytest.mark.parametrize("control", ["random", "shuffled"])
def test_draws_depend_on_seed_name_and_rank(control, monkeypatch):
    def other_name(completions, **kwargs):
        return value(completions)

    draws = [controlled(control, seed, func)(completions=ROWS) for seed in (0, 1) for func in (value, other_name)]
    for rank in ("1", "2"):
        monkeypatch.setenv("RANK", rank)
        draws.append(controlled(control)(completions=ROWS))
    assert len({tuple(draw) for draw in draws}) == 6
    monkeypatch.setenv("RANK", "0")
    assert controlled(control)(completions=ROWS) == draws[0]


@pytest.mark.parametrize("control", ["random", "shuffled"])
def test_control_keeps_name_signature_and_pickles(control):
    wrapped = controlled(control, func=gsm8k_number)
    assert wrapped.__name__ == "gsm8k_number"
    assert wrapped.__doc__ == gsm8k_number.__doc__
    check_reward_columns(wrapped, ["solution"])
    with pytest.raises(ValueError, match="'gsm8k_number' needs the argument 'solution'"):
        check_reward_columns(wrapped, ["prompt"])

    wrapped(completions=ROWS, solution=ROWS)
    copy = pickle.loads(pickle.dumps(wrapped))
    mixed = {"completions": ROWS, "solution": ["3"] * 20 + ROWS[20:]}
    assert copy(**mixed) == wrapped(**mixed)
    assert copy.__name__ == "gsm8k_number"


def test_async_rewards_are_awaited():
    rewards = asyncio.run(controlled("shuffled", func=slow_value)(completions=ROWS))
    assert sorted(rewards) == value(ROWS)
    assert rewards != value(ROWS)
    assert set(asyncio.run(controlled("random", func=slow_value)(completions=ROWS))) <= set(value(ROWS))


@pytest.mark.parametrize("control", ["random", "shuffled"])
def test_errors_of_the_reward_reach_the_caller(control):
    with pytest.raises(ValueError, match="'solution' is None"):
        controlled(control, func=exact_match)(completions=["a"], solution=[None])


def test_unknown_control():
    with pytest.raises(ValueError, match=r"one of none, random, shuffled, not 'shufled', did you mean 'shuffled'\?"):
        apply_reward_control([value], "shufled")

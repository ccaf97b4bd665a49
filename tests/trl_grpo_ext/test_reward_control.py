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


def test_random_is_uniform_and_never_calls_the_reward():
    def fails(completions, **kwargs):
        raise AssertionError("called")

    draws = controlled("random", func=fails)(completions=ROWS * 50)
    assert len(draws) == len(ROWS) * 50
    assert all(0 <= draw < 1 for draw in draws)
    assert abs(sum(draws) / len(draws) - 0.5) < 0.03
    assert len(set(draws)) == len(draws)


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
    assert len(controlled("random", func=slow_value)(completions=ROWS)) == len(ROWS)


def test_errors_of_the_reward_reach_the_caller():
    with pytest.raises(ValueError, match="'solution' is None"):
        controlled("shuffled", func=exact_match)(completions=["a"], solution=[None])


def test_unknown_control():
    with pytest.raises(ValueError, match=r"one of none, random, shuffled, not 'shufled', did you mean 'shuffled'\?"):
        apply_reward_control([value], "shufled")

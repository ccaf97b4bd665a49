"""What all reward adapters share: policy, length, counts, pickling, async functions."""

import asyncio
import math
import os
import pickle
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext import check_reward_columns
from trl_grpo_ext.rewards.adapters import RewardError, ScalarReward, SwiftReward, TRLReward
from trl_grpo_ext.rewards.adapters.calls import as_reward

PROMPTS = ["ask"] * 4
ANSWERS = ["12", "x", "3", ""]


def number(query, response):
    return float(response)


async def async_number(query, response):
    await asyncio.sleep(0)
    return float(response)


def lengths(completions, **kwargs):
    return [len(completion) for completion in completions]


@pytest.mark.parametrize("func", [number, async_number])
def test_raise_names_the_row_and_keeps_the_cause(func):
    reward = ScalarReward(func)
    with pytest.raises(
        RewardError, match=rf"'{func.__name__}' failed in row 1 of 4 .*ValueError: could not"
    ) as caught:
        reward(PROMPTS, ANSWERS)
    assert caught.value.row == 1
    assert isinstance(caught.value.__cause__, ValueError)
    assert reward.errors == 2


@pytest.mark.parametrize("func", [number, async_number])
@pytest.mark.parametrize(("policy", "instead", "skips"), [("skip", None, 2), (-0.5, -0.5, 0), (0, 0.0, 0)])
def test_policy_decides_what_a_failed_row_gets(func, policy, instead, skips):
    reward = ScalarReward(func, on_error=policy)
    assert reward(PROMPTS, ANSWERS) == [12.0, instead, 3.0, instead]
    assert reward(PROMPTS, ANSWERS) == [12.0, instead, 3.0, instead]
    assert (reward.errors, reward.skips) == (4, 2 * skips)
    assert reward.last_metrics == {
        f"rewards/{func.__name__}/errors": 2.0,
        f"rewards/{func.__name__}/skips": float(skips),
    }


def test_metrics_go_to_trl_when_it_listens():
    logged = []
    reward = ScalarReward(number, on_error="skip")
    reward(PROMPTS, ANSWERS, log_metric=lambda name, value: logged.append((name, value)), log_extra=None)
    assert dict(logged) == reward.last_metrics
    assert len(logged) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "1", b"1", [1.0], {}, object(), 10**400, 1j])
def test_what_is_no_finite_number_is_an_error(bad):
    with pytest.raises(RewardError, match="failed in row 0 of 1"):
        TRLReward(lambda completions, **kwargs: [bad])(["p"], ["c"])
    reward = TRLReward(lambda completions, **kwargs: [bad, 1], on_error="skip")
    assert reward(["p", "p"], ["c", "c"]) == [None, 1.0]
    assert (reward.errors, reward.skips) == (1, 1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(json_values)
def test_every_outcome_is_a_finite_float_or_none_or_an_exception(value):
    reward = as_reward(value)
    if isinstance(value, (bool, int, float)) and abs(value) < 1e300:
        assert reward == float(value)
    else:
        assert reward is None or isinstance(reward, Exception) or math.isfinite(reward)
    assert (reward is None) == (value is None)


def test_numpy_and_tensor_results_are_numbers():
    np = pytest.importorskip("numpy")
    import torch

    assert TRLReward(lambda completions, **_: np.array([1, 2]))(["p"] * 2, ["c"] * 2) == [1.0, 2.0]
    assert TRLReward(lambda completions, **_: torch.tensor([0.5, 2.0]))(["p"] * 2, ["c"] * 2) == [0.5, 2.0]
    assert ScalarReward(lambda response: torch.tensor(0.5), name="t")(["p"], ["c"]) == [0.5]


@pytest.mark.parametrize("policy", ["raise", "skip", 0.0])
def test_wrong_length_is_refused_under_every_policy(policy):
    reward = TRLReward(lambda completions, **kwargs: [1.0] * 3, name="three", on_error=policy)
    with pytest.raises(ValueError, match="'three' returned 3 rewards for 4 completions"):
        reward(PROMPTS, ANSWERS)


@pytest.mark.parametrize("result", [None, 1.0, "1111", {"rewards": [1] * 4}])
def test_a_result_that_is_no_list_is_refused(result):
    with pytest.raises(ValueError, match=f"returned {type(result).__name__}, not a list of 4"):
        TRLReward(lambda completions, **kwargs: result)(PROMPTS, ANSWERS)


def test_an_error_of_the_whole_call_is_an_error_of_each_row():
    def broken(completions, **kwargs):
        raise KeyError("key")

    with pytest.raises(RewardError, match="failed in all 4 rows of this call with KeyError"):
        TRLReward(broken)(PROMPTS, ANSWERS)
    reward = TRLReward(broken, on_error="skip")
    assert reward(PROMPTS, ANSWERS) == [None] * 4
    assert reward.errors == 4


def test_interrupts_are_not_errors_of_a_row():
    def interrupted(response):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ScalarReward(interrupted, on_error="skip")(PROMPTS, ANSWERS)


@pytest.mark.parametrize("kind", ["sync", "async", "async cancelled"])
def test_a_function_that_ends_the_interpreter_is_an_error_of_its_row(kind):
    """In the event loop's thread `sys.exit` would end the loop, and the call, and every later one, wait for ever."""

    async def asynchronous(response):
        if kind == "async cancelled" and response == "x":
            raise asyncio.CancelledError
        return synchronous(response)

    def synchronous(response):
        return sys.exit(3) if response == "x" else 1.0

    reward = ScalarReward(synchronous if kind == "sync" else asynchronous, name="r", on_error="skip")
    assert reward(PROMPTS, ANSWERS) == [1.0, None, 1.0, 1.0]
    assert reward(PROMPTS, ANSWERS) == [1.0, None, 1.0, 1.0]
    with pytest.raises(RewardError, match=r"called exit\(3\)" if kind != "async cancelled" else "was cancelled"):
        ScalarReward(reward.func, name="r")(PROMPTS, ANSWERS)


def test_an_interrupt_in_an_async_function_reaches_the_caller():
    async def interrupted(response):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ScalarReward(interrupted, on_error="skip")(PROMPTS, ANSWERS)
    assert TRLReward(async_lengths)(PROMPTS, ANSWERS) == [2.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("policy", ["ignore", None, True, math.nan, math.inf, [0]])
def test_unknown_policy_is_refused(policy):
    with pytest.raises(ValueError, match='on_error must be "raise", "skip" or a finite number'):
        ScalarReward(number, on_error=policy)


def test_adapters_can_be_pickled_with_their_state():
    reward = ScalarReward(number, on_error="skip", name="n")
    reward(PROMPTS, ANSWERS)
    copy = pickle.loads(pickle.dumps(reward))
    assert (copy.__name__, copy.errors) == ("n", 2)
    assert copy(PROMPTS, ANSWERS) == [12.0, None, 3.0, None]
    check_reward_columns(copy, ["prompt"])
    assert pickle.loads(pickle.dumps(TRLReward(lengths)))(PROMPTS, ANSWERS) == [2.0, 1.0, 1.0, 0.0]


def with_odd_defaults(completions, key=lambda text: len(text), lock=threading.Lock(), **kwargs):  # noqa: B008
    return [key(completion) for completion in completions]


def test_defaults_that_cannot_be_pickled_do_not_matter():
    copy = pickle.loads(pickle.dumps(TRLReward(with_odd_defaults)))
    assert copy(PROMPTS, ANSWERS) == [2.0, 1.0, 1.0, 0.0]
    check_reward_columns(copy, ["prompt"])


def test_a_reward_error_can_be_pickled():
    with pytest.raises(RewardError) as caught:
        ScalarReward(number)(PROMPTS, ANSWERS)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.row, str(copy)) == (1, str(caught.value))


def test_required_columns_are_checked_before_training():
    reward = ScalarReward(lambda response, answer: 1.0, name="r")
    check_reward_columns(reward, ["prompt", "answer"])
    with pytest.raises(ValueError, match="needs the argument 'answer'"):
        check_reward_columns(reward, ["prompt"])
    with pytest.raises(ValueError, match=r"'r' needs the dataset column 'answer'.*did you mean 'answers'"):
        reward(PROMPTS, ANSWERS, answers=ANSWERS)


async def reward_inside_a_loop():
    return TRLReward(async_lengths)(PROMPTS, ANSWERS)


async def async_lengths(completions, **kwargs):
    await asyncio.sleep(0)
    return [len(completion) for completion in completions]


def test_async_functions_work_while_a_loop_is_running():
    assert TRLReward(async_lengths)(PROMPTS, ANSWERS) == [2.0, 1.0, 1.0, 0.0]
    assert asyncio.run(reward_inside_a_loop()) == [2.0, 1.0, 1.0, 0.0]


def test_async_rows_run_at_the_same_time_on_one_loop():
    loops, arrived = set(), []

    async def meet(response):
        loops.add((id(asyncio.get_running_loop()), threading.current_thread().name))
        arrived.append(response)
        # One after another, the first row would wait for ever.
        for _ in range(1000):
            if len(arrived) % 4 == 0:
                return 1.0
            await asyncio.sleep(0.001)
        return 0.0

    reward = ScalarReward(meet)
    assert reward(PROMPTS, ANSWERS) + reward(PROMPTS, ANSWERS) == [1.0] * 8
    assert len(loops) == 1


def test_an_adapter_inside_an_async_reward_is_refused_instead_of_waiting_for_ever():
    inner = TRLReward(async_lengths)

    async def nested(completions, **kwargs):
        return inner(PROMPTS, completions)

    with pytest.raises(RewardError, match="would wait for its own event loop"):
        TRLReward(nested)(PROMPTS, ANSWERS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_async_functions_work_after_a_fork():
    reward = SwiftReward(AsyncLengths)
    assert reward(PROMPTS, ANSWERS) == [2.0, 1.0, 1.0, 0.0]
    child = os.fork()
    if child == 0:
        os._exit(0 if reward(PROMPTS, ANSWERS) == [2.0, 1.0, 1.0, 0.0] else 1)
    finished = threading.Event()
    status = []
    threading.Thread(target=lambda: (status.append(os.waitpid(child, 0)[1]), finished.set()), daemon=True).start()
    if not finished.wait(10):
        os.kill(child, 9)
    assert finished.wait(5)
    assert status == [0]


class AsyncLengths:
    async def __call__(self, completions, **kwargs):
        await asyncio.sleep(0)
        return [len(completion) for completion in completions]

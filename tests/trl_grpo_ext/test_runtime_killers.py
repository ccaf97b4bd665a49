"""Three published ways in which a completion stops or takes over a trainer, each against the code that it stopped."""

import os
import time

import pytest

from trl_grpo_ext.rewards.runtime import IsolatedReward, RewardRuntime

cloudpickle = pytest.importorskip("cloudpickle")


@pytest.fixture(scope="module")
def runtime():
    with RewardRuntime(workers=2, deadline=1.0) as shared:
        yield shared


def timed(reward, **columns):
    started = time.monotonic()
    rewards = reward(**columns)
    return rewards, time.monotonic() - started


def test_power_towers_in_math_verify(runtime):
    """Math-Verify#65: `verify` of a power tower holds the GIL; its own timeouts do not fire."""
    pytest.importorskip("math_verify")

    def math_equal(completions, solution, **kwargs):
        from math_verify import parse, verify

        gold, answer = (parse(text, parsing_timeout=None) for text in (solution[0], completions[0]))
        return [float(verify(gold, answer, timeout_seconds=None))]

    # Without `imports`, the row after a kill would spend its deadline on them.
    reward = IsolatedReward(math_equal, runtime=runtime, imports=["math_verify"], deadline=2.0)
    tower = "$3^{3^{20}}$"
    deep = "$9^{9^{9^{9^{9}}}}$"
    answers = ["$7$", tower, "$\\frac{14}{2}$", deep, "$8$"]
    rewards, seconds = timed(reward, completions=answers, solution=["$7$"] * 5)
    assert (rewards[0], rewards[2], rewards[4]) == (1.0, 1.0, 0.0)
    assert rewards[1] is None
    assert not rewards[3]
    assert reward.stats()["timeouts"] >= 1
    assert seconds < 15


def naive_countdown(completions, target, nums, **kwargs):
    """The reward that several projects copy: a character check, then `eval`."""
    import re

    (equation,) = completions
    if sorted(int(n) for n in re.findall(r"\d+", equation)) != sorted(nums[0]):
        return [0.0]
    if not re.match(r"^[\d+\-*/().\s]+$", equation):
        return [0.0]
    return [float(abs(eval(equation, {"__builtins__": None}, {}) - target[0]) < 1e-5)]


def test_the_countdown_answer_that_never_returns(runtime):
    reward = IsolatedReward(naive_countdown, runtime=runtime, on_kill=0.0)
    answers = ["95-38-47", "95**38**47", "47+38+95"]
    rewards, seconds = timed(reward, completions=answers, target=[10] * 3, nums=[[95, 38, 47]] * 3)
    assert rewards == [1.0, 0.0, 0.0]
    assert reward.stats()["timeouts"] == 1
    assert seconds < 2.5


def eval_scorer(completions, **kwargs):
    """What a scorer that evaluates the answer does with it."""
    return [float(eval(completions[0]) is not None)]


def test_python_in_an_answer_is_not_run_in_the_trainer(runtime, tmp_path):
    marker = tmp_path / "owned"
    answer = f"__import__('os').system('echo {os.getpid()} > {marker}; kill {os.getpid()}')"
    reward = IsolatedReward(eval_scorer, runtime=runtime)
    assert reward(completions=[answer, "1"])[1] == 1.0
    where = IsolatedReward(eval_scorer, name="where", runtime=runtime, on_error="raise")
    in_trainer = "1 if __import__('sys').argv[0].endswith('worker.py') else {}[0]"
    assert where(completions=[in_trainer]) == [1.0]
    (capabilities, _) = runtime.start()
    assert marker.exists() != capabilities.files

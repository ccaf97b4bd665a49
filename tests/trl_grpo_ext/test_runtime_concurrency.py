"""Rewards of different functions at the same time, under the stock trainer of either TRL line."""

import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from trl_grpo_ext.rewards.runtime import IsolatedReward, RewardError, RewardRuntime

cloudpickle = pytest.importorskip("cloudpickle")


@pytest.fixture(scope="module")
def runtime():
    with RewardRuntime(workers=3, deadline=5.0) as shared:
        shared.start()
        yield shared


def slow(name, seconds, runtime, **arguments):
    def wait(completions, **kwargs):
        import time

        time.sleep(seconds)
        if kwargs.get("log_metric") is not None:
            kwargs["log_metric"](f"{name}_done", 1.0)
        return [float(len(text)) for text in completions]

    arguments = {"rowwise": False, "on_error": "raise"} | arguments
    return IsolatedReward(wait, name=name, runtime=runtime, **arguments)


class Trainer:
    """Calls reward functions as TRL does: one after the other, with the same objects."""

    def __init__(self, *reward_funcs):
        self.reward_funcs = list(reward_funcs)

    def calculate(self, completions, **columns):
        arguments = {"prompts": ["p"] * len(completions), "completions": completions, **columns}
        return [reward(**arguments) for reward in self.reward_funcs]


def timed(function, *arguments, **named):
    started = time.monotonic()
    result = function(*arguments, **named)
    return result, time.monotonic() - started


def test_the_stock_trainer_gets_slow_rewards_in_the_time_of_one(make_tiny_trainer, runtime):
    rewards = [slow("left", 1.0, runtime), slow("right", 1.0, runtime)]
    trainer = make_tiny_trainer(rewards, [{"prompt": "say "} for _ in range(8)])
    calculate, seconds = trainer._calculate_rewards, []

    def measured(*args, **kwargs):
        result, taken = timed(calculate, *args, **kwargs)
        seconds.append(taken)
        return result

    trainer._calculate_rewards = measured
    trainer.train()
    assert len(seconds) == 3
    # Two seconds one after the other. The first step too: nothing has to be learnt from an earlier one.
    assert all(1.0 <= taken < 1.7 for taken in seconds), seconds
    assert rewards[0].stats()["rows"] == rewards[1].stats()["rows"] > 0
    both = zip(*(trainer._logs["rewards"][name] for name in ("left", "right")), strict=True)
    assert all(left == right for left, right in both)


def test_each_batch_gets_its_own_rewards_and_logs(runtime):
    trainer = Trainer(slow("a", 0.3, runtime), slow("b", 0.3, runtime), slow("c", 0.3, runtime))
    logs = []
    for batch in (["x", "yy"], ["zzz", ""]):
        log = {"log_metric": lambda name, value: logs.append((threading.current_thread().name, name))}
        results, seconds = timed(trainer.calculate, batch, **log)
        assert results == [[float(len(text)) for text in batch]] * 3
        assert seconds < 0.75
    assert {thread for thread, _ in logs} == {"MainThread"}
    assert [name for _, name in logs if name.endswith("_done")] == ["a_done", "b_done", "c_done"] * 2


def test_a_reward_of_the_trainers_own_process_overlaps_with_the_others(runtime):
    def here(completions, **kwargs):
        time.sleep(0.4)
        return [0.0] * len(completions)

    trainer = Trainer(slow("d", 0.4, runtime), IsolatedReward(here, in_process=True), slow("e", 0.4, runtime))
    # The first two follow one another, the third runs beside them; in the other order all three overlap.
    assert timed(trainer.calculate, ["a"])[1] < 1.1
    trainer.reward_funcs = trainer.reward_funcs[1:]
    assert timed(trainer.calculate, ["b"])[1] < 0.7


def test_calls_that_were_not_foreseen_are_answered_too(runtime):
    first, second = slow("f", 0.1, runtime), slow("g", 0.1, runtime)
    trainer = Trainer(first, second)

    class Skips(Trainer):
        def calculate(self, completions, **columns):
            return self.reward_funcs[0](prompts=None, completions=completions, **columns)

    Skips(first, second).calculate(["started and never fetched"])
    assert second(prompts=None, completions=["own"]) == [3.0]
    assert trainer.calculate(["aaaa"]) == [[4.0], [4.0]]
    # Equal texts in another list are another batch: the first one's columns may differ.
    Skips(first, second).calculate(["aa"])
    assert second(prompts=None, completions=["aa"]) == [2.0]
    assert second.stats()["rows"] == 3


def test_an_error_of_the_first_cancels_the_others(runtime):
    def fails(completions, **kwargs):
        raise RuntimeError("broken")

    counted = IsolatedReward(
        lambda completions, **kwargs: __import__("time").sleep(0.5) or [1.0],
        name="many",
        runtime=runtime,
        deadline=2.0,
    )
    failing = IsolatedReward(fails, runtime=runtime, on_error="raise", rowwise=False)
    trainer = Trainer(failing, counted)
    with pytest.raises(RewardError, match="broken"):
        trainer.calculate([str(i) for i in range(60)])
    # Sixty rows of half a second would hold all three workers for ten seconds.
    _, seconds = timed(
        IsolatedReward(lambda completions, **kwargs: [2.0], name="next", runtime=runtime), completions=["a"]
    )
    assert seconds < 6
    assert not [thread for thread in threading.enumerate() if thread.name == "reward-ahead" and not thread.daemon]


def test_an_error_of_a_later_one_arrives_when_its_turn_comes(runtime):
    def fails(completions, **kwargs):
        raise RuntimeError("broken later")

    first = slow("h", 0.1, runtime)
    trainer = Trainer(first, IsolatedReward(fails, name="later", runtime=runtime, on_error="raise", rowwise=False))
    with pytest.raises(RewardError, match=r"'later' failed on row 0 (.|\n)*broken later"):
        trainer.calculate(["a"])
    assert first.stats()["rows"] == 1


def test_a_closed_runtime_starts_no_worker_again():
    closing = RewardRuntime(workers=2, deadline=30.0)
    trainer = Trainer(slow("i", 20.0, closing), slow("j", 20.0, closing))
    errors = []

    def call():
        try:
            trainer.calculate(["a"])
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    end = time.monotonic() + 10
    while len(closing.pids()) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.3)
    closing.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(errors) == 1
    time.sleep(0.3)
    assert closing.pids() == []


SCRIPT = """
import os, sys, time
from trl_grpo_ext.rewards.runtime import IsolatedReward, RewardRuntime
def hold(completions, **kwargs):
    import subprocess
    subprocess.run(["sleep", completions[0]])
    return [1.0]
def quick(completions, **kwargs):
    import time
    time.sleep(0.5)
    if completions[0] and kwargs["mode"][0] == "raise":
        raise RuntimeError("stop")
    return [1.0]
runtime = RewardRuntime(workers=2, deadline=100.0)
class Trainer:
    def __init__(self):
        self.reward_funcs = [IsolatedReward(f, runtime=runtime, on_error="raise") for f in (quick, hold)]
    def step(self, **arguments):
        self.reward_funcs[0](**arguments)
        print("scored", flush=True)
        {"end": lambda: None, "abort": os.abort, "wait": lambda: time.sleep(60)}[arguments["mode"][0]]()
Trainer().step(prompts=["p"], completions=[sys.argv[1]], mode=[sys.argv[2]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("mode", ["end", "raise", "abort", "wait"])
def test_work_that_was_started_ahead_ends_with_the_trainer(subprocess_environment, mode):
    """`hold` is under way, and nobody will ever fetch it, when the trainer ends, fails, crashes or is killed."""
    marker = f"4321.{os.getpid()}{time.monotonic_ns()}"
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, marker, mode],
        env=subprocess_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if mode == "wait":
        assert run.stdout.readline() == "scored\n"
        run.kill()
    _, errors = run.communicate(timeout=20)
    assert run.returncode == {"end": 0, "raise": 1, "abort": -6, "wait": -9}[mode], errors

    def alive():
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    found += [name] if marker.encode() in file.read() else []
            except OSError:
                pass
        return found

    end = time.monotonic() + 3
    while alive() and time.monotonic() < end:
        time.sleep(0.02)
    assert alive() == []


def test_no_trainer_no_ahead(runtime):
    """Called by a function, by a wrapper, or by an object with other `reward_funcs`, a reward is just called."""
    reward = slow("k", 0.0, runtime)
    assert reward(completions=["a"]) == [1.0]
    for functions in (None, [reward, reward], [], SimpleNamespace()):
        trainer = Trainer()
        trainer.reward_funcs = functions

        def call(self):
            return reward(completions=["bb"])

        assert call(trainer) == [2.0]

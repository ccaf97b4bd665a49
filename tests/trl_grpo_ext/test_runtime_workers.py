"""Reward functions in real worker processes."""

import os
import pickle
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from trl_grpo_ext import check_reward_columns
from trl_grpo_ext.rewards.runtime import IsolatedReward, RewardError, RewardLoadError, RewardRuntime

cloudpickle = pytest.importorskip("cloudpickle")


@pytest.fixture(scope="module")
def runtime():
    with RewardRuntime(workers=2, deadline=1.0) as shared:
        shared.start()
        yield shared


def mixed(completions, **kwargs):
    """The completion's length; `hang` holds the GIL for ever, `crash` ends the process, `err` raises."""
    (text,) = completions
    if text == "hang":
        return [7 ** (9**9**2)]
    if text == "crash":
        os._exit(3)
    if text == "err":
        raise KeyError("no such thing")
    return [None if text == "none" else float(len(text))]


def test_a_killed_row_does_not_lose_the_others(runtime):
    reward = IsolatedReward(mixed, name="killed", runtime=runtime, on_error=-1.0, on_kill="skip")
    started = time.monotonic()
    texts = ["a", "hang", "bb", "err", "ccc", "crash", "none", "dddd"] + ["x" * i for i in range(5, 40)]
    rewards = reward(prompts=["p"] * len(texts), completions=texts)
    assert rewards == [1.0, None, 2.0, -1.0, 3.0, None, None, 4.0, *map(float, range(5, 40))]
    assert time.monotonic() - started < 10
    assert reward.stats() == {"rows": 43, "errors": 1, "timeouts": 1, "kills": 1, "skips": 3, "cache_hits": 0}


def test_a_deadline_of_a_second_kills_within_a_second_and_a_half(runtime):
    reward = IsolatedReward(mixed, runtime=runtime)
    reward(completions=["warm"])
    before = set(runtime.pids())
    started = time.monotonic()
    assert reward(completions=["hang"]) == [None]
    assert 1.0 <= time.monotonic() - started < 1.5
    assert len(set(runtime.pids()) & before) == 1


def test_errors_stop_the_run_when_asked(runtime):
    reward = IsolatedReward(mixed, runtime=runtime, on_error="raise")
    with pytest.raises(RewardError, match=r"'mixed' failed on row 1 .*KeyError: 'no such thing'(.|\n)*in mixed"):
        reward(completions=["a", "err"])
    assert reward(completions=["after"]) == [5.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "x", [1.0, 2.0]], ids=str)
def test_what_is_no_reward_is_an_error(runtime, value):
    reward = IsolatedReward(
        lambda completions, **kwargs: value if isinstance(value, list) else [value],
        name="bad",
        runtime=runtime,
        on_error=-7.0,
    )
    assert reward(completions=["a"]) == [-7.0]


def test_columns_arrive_row_by_row(runtime):
    reward = IsolatedReward("exact_match", runtime=runtime)
    assert reward(prompts=["p"] * 3, completions=["1", "2", "3"], solution=["1", "x", "3"]) == [1.0, 0.0, 1.0]
    check_reward_columns(reward, ["prompt", "solution"])


def test_a_function_that_compares_rows_gets_all_of_them(runtime):
    def rank(completions, **kwargs):
        return [float(sorted(completions).index(text)) for text in completions]

    assert IsolatedReward(rank, runtime=runtime, rowwise=False)(completions=list("cab")) == [2.0, 0.0, 1.0]
    assert IsolatedReward(rank, runtime=runtime)(completions=list("cab")) == [0.0, 0.0, 0.0]


def test_async_functions_and_prints(runtime):
    async def slow_length(completions, **kwargs):
        import asyncio

        await asyncio.sleep(0.001)
        print("x" * 100_000, flush=True)
        os.write(1, b"\0" * 1000)
        return [float(len(text)) for text in completions]

    assert IsolatedReward(slow_length, runtime=runtime)(completions=["a", "bb"]) == [1.0, 2.0]


def test_files_and_modules_by_name(runtime, tmp_path, monkeypatch):
    (tmp_path / "rewards.py").write_text("def twice(completions, **kwargs):\n    return [2.0] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    assert IsolatedReward("rewards.py:twice", runtime=runtime)(completions=["a"]) == [2.0]
    module = "trl_grpo_ext.rewards.builtin:exact_match"
    assert IsolatedReward(module, runtime=runtime)(completions=["a"], solution=["a"]) == [1.0]


def test_a_function_loaded_from_a_file_travels_with_its_code(runtime, tmp_path):
    from trl_grpo_ext import resolve_reward_funcs

    (tmp_path / "r.py").write_text("K = 3.0\ndef const(completions, **kwargs):\n    return [K] * len(completions)\n")
    (func,) = resolve_reward_funcs("r.py:const", tmp_path)
    reward = IsolatedReward(func, runtime=runtime)
    (tmp_path / "r.py").unlink()
    assert reward(completions=["a"]) == [3.0]


def test_imports_come_before_the_deadline(runtime, tmp_path, monkeypatch):
    (tmp_path / "slow_verifier.py").write_text("import time\ntime.sleep(0.6)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def lazy(completions, **kwargs):
        import slow_verifier

        return [float(slow_verifier.__name__ == "slow_verifier")]

    with RewardRuntime(workers=1, deadline=0.4) as fresh:
        assert IsolatedReward(lazy, runtime=fresh, imports=["slow_verifier"])(completions=["a"]) == [1.0]
    with RewardRuntime(workers=1, deadline=0.4) as fresh:
        assert IsolatedReward(lazy, runtime=fresh)(completions=["a"]) == [None]
        with pytest.raises(RewardLoadError, match="no_such_verifier"):
            IsolatedReward(mixed, runtime=fresh, imports=["no_such_verifier"])(completions=["a"])


def test_an_import_that_fails_in_the_worker_is_said_so(runtime, tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module_here\n")
    with pytest.raises(RewardLoadError, match=r"can't run in a worker(.|\n)*no_such_module_here"):
        IsolatedReward(f"{tmp_path / 'broken.py'}:f", runtime=runtime)(completions=["a"])


def test_workers_import_no_torch(runtime):
    def heavy(completions, **kwargs):
        import sys

        return [float(bool({"torch", "transformers", "trl"} & set(sys.modules)))]

    pytest.importorskip("torch")
    assert IsolatedReward(heavy, runtime=runtime)(completions=["a"]) == [0.0]


def counted(completions, **kwargs):
    """A new number at each call."""
    return [time.monotonic() for _ in completions]


def test_results_are_reused_for_equal_rows_only(runtime):
    reward = IsolatedReward(counted, runtime=runtime)
    first = reward(prompts=["p", "q"], completions=["a", "a"], x=[1, 1])
    assert reward(prompts=["p", "q"], completions=["a", "a"], x=[1, 1]) == first
    assert reward.stats()["cache_hits"] == 2
    assert reward(prompts=["p"], completions=["a"], x=[2]) != first[:1]
    assert reward(prompts=["z"], completions=["a"], x=[1]) != first[:1]
    assert (
        IsolatedReward(counted, runtime=runtime, stateful=True)(prompts=["p"], completions=["a"], x=[1]) != first[:1]
    )


def test_equal_rows_of_one_call_are_run_once(runtime):
    reward = IsolatedReward(counted, name="once", runtime=runtime)
    first, second, third = reward(completions=["same", "same", "other"])
    assert first == second != third
    assert reward.stats()["cache_hits"] == 1


def stepwise(completions, trainer_state, log_extra, log_metric, **kwargs):
    log_extra("size", [len(text) for text in completions])
    log_metric("mean_size", len(completions[0]))
    trainer_state.global_step += 1
    return [float(trainer_state.global_step)]


def test_state_is_a_copy_and_logs_are_replayed(runtime):
    state, logs = SimpleNamespace(global_step=4), []
    reward = IsolatedReward(stepwise, runtime=runtime)
    arguments = {"log_extra": lambda *a: logs.append(a), "log_metric": lambda *a: logs.append(a)}
    assert reward(completions=["a", "bbb"], trainer_state=state, **arguments) == [5.0, 5.0]
    assert state.global_step == 4
    assert ("size", [1, 3]) in logs
    assert ("mean_size", 2.0) in logs
    assert ("reward_runtime/stepwise/rows", 2.0) in logs


def test_equal_rows_log_like_all_others(runtime):
    logs = []
    arguments = {"log_extra": lambda *a: logs.append(a), "log_metric": lambda *a: None}
    IsolatedReward(stepwise, runtime=runtime)(
        completions=["a", "a", "bb"], trainer_state=SimpleNamespace(global_step=0), **arguments
    )
    assert logs == [("size", [1, 1, 2])]


def test_a_result_that_used_the_state_is_not_reused(runtime):
    def step(completions, **kwargs):
        return [float(kwargs["trainer_state"].global_step)]

    reward = IsolatedReward(step, runtime=runtime)
    assert [reward(completions=["a"], trainer_state=SimpleNamespace(global_step=i)) for i in (1, 2)] == [[1.0], [2.0]]


def test_pickled_rewards_work_and_bring_their_own_workers():
    reward = IsolatedReward(lambda completions, **kwargs: [1.5], name="one", runtime=RewardRuntime(workers=1))
    copy = pickle.loads(pickle.dumps(reward))
    assert copy(completions=["a"]) == [1.5]
    assert copy.__name__ == "one"
    assert reward.runtime.pids() == []
    copy.runtime.close()


def test_in_process_runs_in_the_trainer_with_the_live_arguments():
    state, logs = SimpleNamespace(global_step=1), []

    def here(completions, trainer_state, log_metric, **kwargs):
        trainer_state.global_step += 1
        log_metric("m", 1.0)
        return [float(os.getpid())] * len(completions)

    reward = IsolatedReward(here, in_process=True, on_error="raise")
    log = {"log_metric": lambda *a: logs.append(a)}
    assert reward(completions=["a", "b"], trainer_state=state, **log) == [float(os.getpid())] * 2
    assert state.global_step == 2
    assert logs[0] == ("m", 1.0)


def test_functions_run_at_the_same_time(runtime):
    """Each of two functions waits until the other has begun, which it can only while both run."""
    left, right = (f"/tmp/runtime-{os.getpid()}-{side}" for side in "lr")
    writable = RewardRuntime(workers=2, deadline=20.0, read_only=False)

    def meet(own, other):
        def wait(completions, **kwargs):
            open(own, "w").close()
            end = time.monotonic() + 10
            while not os.path.exists(other) and time.monotonic() < end:
                time.sleep(0.01)
            return [float(os.path.exists(other))]

        return IsolatedReward(wait, name=own[-1], runtime=writable)

    results = {}
    rewards = [meet(left, right), meet(right, left)]
    try:
        threads = [
            threading.Thread(target=lambda r=reward: results.update({r.__name__: r(completions=["a"])}))
            for reward in rewards
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    finally:
        writable.close()
        for path in (left, right):
            if os.path.exists(path):
                os.unlink(path)
    assert results == {"l": [1.0], "r": [1.0]}


def test_many_threads_share_few_workers(runtime):
    results = {}

    def use(number):
        reward = IsolatedReward(
            lambda completions, **kwargs: [number + float(completions[0])], name=str(number), runtime=runtime
        )
        results[number] = reward(completions=[str(i) for i in range(50)])

    threads = [threading.Thread(target=use, args=(number * 1000,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {n * 1000: [n * 1000 + float(i) for i in range(50)] for n in range(6)}


def test_a_closed_runtime_says_so():
    closed = RewardRuntime(workers=1)
    closed.close()
    with pytest.raises(RuntimeError, match="closed"):
        IsolatedReward(mixed, runtime=closed)(completions=["a"])


SCRIPT = """
import sys
from trl_grpo_ext.rewards.runtime import IsolatedReward
print("main body", file=sys.stdout)
SCALE = 2.0
def from_main(completions, **kwargs):
    print("noise")
    return [SCALE * len(text) for text in completions]
print(IsolatedReward(from_main)(completions=["a", "bb"]))
"""


@pytest.mark.parametrize("notebook", [False, True])
def test_scripts_without_main_guard_and_notebooks(tmp_path, subprocess_environment, notebook):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = ["-c", f"exec(compile({SCRIPT!r}, '<cell>', 'exec'))"] if notebook else ["script.py"]
    run = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=subprocess_environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout == "main body\n[2.0, 4.0]\n", run.stderr


def test_a_fork_of_the_trainer_has_its_own_workers(runtime):
    reward = IsolatedReward(mixed, runtime=runtime)
    reward(completions=["warm"])
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fresh = runtime.pids() == []
            code = 0 if fresh and reward(completions=["forked"]) == [6.0] else 2
            runtime.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert reward(completions=["parent"]) == [6.0]

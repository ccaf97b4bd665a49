"""A reward worker is killed from outside, the library is locked by another process: what a real run makes of it."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from transformers import TrainerCallback

from tests.conformance.runs import extended
from tests.distributed.resume_runs import SAVING
from tests.experience.callback_runs import contents
from trl_grpo_ext import ExperienceCallback, ExperienceLibrary, Lesson
from trl_grpo_ext.experience.errors import LibraryLockedError
from trl_grpo_ext.rewards import RewardError
from trl_grpo_ext.rewards.runtime import IsolatedReward, RewardRuntime

STEPS = 3
SETTINGS = {"max_steps": STEPS, "gradient_accumulation_steps": 1}
LOCKER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


class AtStep(TrainerCallback):
    """Does something when a step begins, once."""

    def __init__(self, step, work):
        self.step, self.work = step, work

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.work()


# A reward worker that dies.


def processes_below(pid):
    """The supervisor of a worker, and everything that it started; the worker is the last."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(FileNotFoundError):
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return found


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ticks(pid):
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


class Killer(threading.Thread):
    """Kills a worker, or its supervisor, once the worker is busy in a call."""

    def __init__(self, runtime, victim):
        super().__init__(daemon=True)
        (pid,) = runtime.pids()
        self.family = processes_below(pid)
        self.victim, self.before = self.family[victim], ticks(self.family[-1])

    def run(self):
        # What the call took before it hung is far below.
        while ticks(self.family[-1]) - self.before < 0.3 * os.sysconf("SC_CLK_TCK"):
            time.sleep(0.02)
        os.kill(self.victim, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker in /proc")
@pytest.mark.parametrize("victim, policy", [(-1, "skip"), (0, "raise")], ids=["worker", "supervisor"])
def test_a_reward_worker_that_is_killed_in_a_call(victim, policy, model, tmp_path):
    killers = []

    # Not of this module, which a worker would import.
    def busy_in_step_2(completions, trainer_state, **kwargs):
        while trainer_state.global_step == 1:
            pass
        return [float(len(text)) for text in completions]

    # Nothing but the kill could end the call: it would run for an hour.
    with RewardRuntime(workers=1, deadline=3600.0) as runtime:

        def kill():
            killers.append(Killer(runtime, victim))
            killers[0].start()

        reward = IsolatedReward(busy_in_step_2, runtime=runtime, on_kill=policy, rowwise=False)
        trainer = extended(model, tmp_path, reward=reward, callbacks=[AtStep(2, kill)], **SETTINGS)
        if policy == "raise":
            with pytest.raises(
                RewardError, match=r"'busy_in_step_2' failed on row 0 .*is gone: it was ended by signal 9"
            ):
                trainer.train()
        else:
            trainer.train()
            assert trainer.state.global_step == STEPS
            assert (reward.stats()["kills"], reward.stats()["skips"]) == (4, 4)
        (replaced,) = runtime.pids()
        after = processes_below(replaced)
    assert not set(after) & set(killers[0].family)
    assert not [pid for pid in (*killers[0].family, *after) if is_running(pid)]


# A library that another process has locked.


def locked_by_another(path, seconds):
    """Return a process that holds the write lock for so long."""
    command = [sys.executable, "-c", LOCKER, str(path), str(seconds)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "locked\n"
    return other


def with_library(model, folder, timeout, *callbacks):
    folder.mkdir(exist_ok=True)
    library = ExperienceLibrary(folder / "experiences.db", timeout=timeout, seed=0)
    if not len(library):
        library.add(Lesson("Count twice."))
    experience = ExperienceCallback(library, position="prefix", template=None)
    trainer = extended(model, folder, callbacks=[*callbacks, experience], **SAVING | SETTINGS | {"save_steps": 1})
    return trainer, library


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    trainer, library = with_library(model, tmp_path_factory.mktemp("undisturbed"), 30.0)
    trainer.train()
    assert library.library_size() > 2
    return contents(library)


def test_a_library_that_is_unlocked_in_time(undisturbed, model, tmp_path):
    others = []
    trainer, library = with_library(
        model, tmp_path, 60.0, AtStep(2, lambda: others.append(locked_by_another(library.name, 1.0)))
    )
    trainer.train()
    assert others[0].wait() == 0
    assert trainer.state.global_step == STEPS
    assert contents(library) == undisturbed


def test_a_library_that_stays_locked(undisturbed, model, tmp_path):
    others = []
    trainer, library = with_library(
        model, tmp_path, 0.2, AtStep(2, lambda: others.append(locked_by_another(library.name, 3600.0)))
    )
    try:
        with pytest.raises(LibraryLockedError) as caught:
            trainer.train()
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / 'experiences.db'}: another process holds the write lock")
        assert "End that process, then resume the run from its last checkpoint" in message
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            sqlite3.connect(library.name, timeout=0.0, isolation_level=None).execute("BEGIN IMMEDIATE")
    finally:
        others[0].kill()
        others[0].wait()
    library.close()
    again, library = with_library(model, tmp_path, 0.2)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == STEPS
    assert contents(library) == undisturbed

"""Runs that stop: by a budget, Ctrl-C, an error or a kill. They continue where they were, and to the same library."""

import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from tests.training_free.crash_run import WORLD
from tests.training_free.lesson_world import World
from tests.training_free.runs import export, learner, score, train
from trl_grpo_ext.experience import ExperienceLibrary, Lesson
from trl_grpo_ext.training_free import Budget, Price, RunChangedError
from trl_grpo_ext.training_free.run import Run
from trl_grpo_ext.training_free.state import RunBusyError, RunState

REPOSITORY = Path(__file__).resolve().parents[2]
WHOLE = World(seed=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The export, spending and lessons of an uninterrupted run."""
    run = learner(WHOLE)
    train(run, WHOLE)
    return export(run, tmp_path_factory.mktemp("whole")), run.report


def test_a_finished_run_costs_nothing_again(tmp_path, whole):
    first = learner(WHOLE, tmp_path)
    train(first, WHOLE)
    again = learner(WHOLE, tmp_path)
    train(again, WHOLE)
    assert (again.policy.calls, again.reflector.calls) == (0, 0)
    assert again.report.as_dict() == first.report.as_dict() == whole[1].as_dict()
    assert export(again, tmp_path) == whole[0]


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ({"max_calls": 70}, "max_calls=70"),
        ({"max_tokens": 9000}, "max_tokens=9000"),
        ({"max_cost": 0.01, "prices": {"*": Price(1, 1)}}, "max_cost=0.01"),
        ({"max_seconds": 1e-9}, "max_seconds=1e-09"),
    ],
)
def test_a_budget_stops_cleanly_and_a_larger_one_continues(tmp_path, whole, budget, says):
    run = learner(WHOLE, tmp_path, budget=Budget(**budget))
    before = train(run, WHOLE)
    assert run.report.status == "stopped" and says in run.report.reason
    assert before == [] and run.library.check_integrity() == []
    assert (tmp_path / "report.json").is_file() and (tmp_path / "system_prompt.txt").is_file()
    train(run, WHOLE)
    assert run.report.status == "stopped"
    more = learner(WHOLE, tmp_path)
    train(more, WHOLE)
    assert more.report.status == "finished" and export(more, tmp_path) == whole[0]
    # What was paid for is not paid again.
    assert more.report.spent == whole[1].spent
    assert run.policy.calls + run.reflector.calls + more.policy.calls + more.reflector.calls == whole[1].spent["calls"]


@pytest.mark.parametrize("limit", [1, 60, 130, 250])
def test_the_limit_of_calls_is_exact(limit):
    run = learner(WHOLE, failing=0.3, budget=Budget(max_calls=limit))
    train(run, WHOLE)
    assert run.report.spent["calls"] == limit == run.policy.calls + run.reflector.calls


@pytest.mark.parametrize("calls", [1, 100, 200, 330])
def test_ctrl_c_at_any_call(tmp_path, whole, calls):
    seen = []

    def on_progress(progress):
        seen.append(progress)
        if len(seen) == calls:
            raise KeyboardInterrupt

    run = learner(WHOLE, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(run, WHOLE, on_progress=on_progress)
    assert run.report.status == "interrupted" and seen[-1].steps == 3
    spent = [progress.spent.calls for progress in seen]
    # One event per call, and one more after each step.
    assert spent == sorted(spent) and calls - 3 <= spent[-1] <= calls
    again = learner(WHOLE, tmp_path, concurrency=8)
    train(again, WHOLE)
    assert export(again, tmp_path) == whole[0]


def test_a_resume_with_other_settings_is_refused_with_a_diff(tmp_path):
    train(learner(WHOLE, tmp_path), WHOLE)
    other = learner(WHOLE, tmp_path, num_generations=4, temperature=0.5)
    with pytest.raises(RunChangedError, match=r"num_generations: 5 -> 4\n.*temperature: 0.7 -> 0.5") as caught:
        train(other, WHOLE)
    assert "another output_dir" in str(caught.value)
    assert other.policy.calls == 0
    with pytest.raises(RunChangedError, match=r"problems.rows: 12 -> 18\n"):
        train(learner(WHOLE, tmp_path), WHOLE, problems=18)
    with pytest.raises(RunChangedError, match=r"reward: 'solved sha256:[0-9a-f]{12}' -> 'exact_match'"):
        rows = [{**row, "solution": row["answer"]} for row in WHOLE.rows(12)]
        learner(WHOLE, tmp_path).train(rows, "exact_match", WHOLE.rows(80, 1000))


def test_a_resume_with_another_text_of_the_reward_is_refused(tmp_path):
    file = tmp_path / "rewards.py"
    text = "def reward(query, response):\n    return float(len(response) > {})\n"
    file.write_text(text.format(3), encoding="utf-8")
    rows = [{"prompt": row["prompt"]} for row in WHOLE.rows(12)]
    learner(WHOLE, tmp_path / "run", gate=None).train(rows, f"{file}:reward")
    again = learner(WHOLE, tmp_path / "run", gate=None)
    again.train(rows, f"{file}:reward")
    assert again.policy.calls == 0
    file.write_text(text.format(99), encoding="utf-8")
    with pytest.raises(RunChangedError, match=r"reward: 'reward sha256:[0-9a-f]{12}' -> 'reward sha256:"):
        learner(WHOLE, tmp_path / "run", gate=None).train(rows, f"{file}:reward")


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    state = RunState(tmp_path / "run.db")
    run = learner(WHOLE, tmp_path)
    with pytest.raises(RunBusyError, match="another process is training in this folder"):
        train(run, WHOLE)
    state.close()
    assert len(train(run, WHOLE)) >= 5


def test_a_file_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "run.db").write_text("my notes, " * 100)
    with pytest.raises(ValueError, match="can't be used as the file of a run"):
        train(learner(WHOLE, tmp_path), WHOLE)
    assert (tmp_path / "run.db").read_text() == "my notes, " * 100


def test_a_library_that_changed_in_between_is_not_changed_blindly(tmp_path, monkeypatch):
    def die(self, step):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Run, "_commit", lambda self, step, base, record: die(self, step))
        with pytest.raises(KeyboardInterrupt):
            train(learner(WHOLE, tmp_path), WHOLE)
    run = learner(WHOLE, tmp_path)
    run.library.add(Lesson("Somebody else was here."))
    with pytest.raises(RunChangedError, match=r"something else has changed it. Roll it back with rollback\(1\)"):
        train(run, WHOLE)
    assert run.library.lesson_count() == 1


@pytest.mark.parametrize("when", ["before the library", "after the library"])
def test_killed_around_the_commit(tmp_path, monkeypatch, whole, when):
    """Between journal and library, and between library and journal: the step is there once."""
    target = (Run, "_commit") if when == "before the library" else (RunState, "mark_done")

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(*target, die)
        with pytest.raises(KeyboardInterrupt):
            train(learner(WHOLE, tmp_path), WHOLE)
    run = learner(WHOLE, tmp_path)
    assert run.library.lesson_count() == (0 if when == "before the library" else len(whole[1].steps[0]["candidate"]))
    train(run, WHOLE)
    assert export(run, tmp_path) == whole[0]


def test_a_step_that_can_not_be_stored_is_not_stored_in_part(tmp_path, monkeypatch, whole):
    run = learner(WHOLE, tmp_path)
    real = ExperienceLibrary.add

    def full(self, *records, **more):
        real(self, *records, **more)
        if self is run.library:
            raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ExperienceLibrary, "add", full)
        with pytest.raises(OSError, match="no space"):
            train(run, WHOLE)
    assert run.library.lesson_count() == 0 and run.report.steps == []
    train(run, WHOLE)
    assert export(run, tmp_path) == whole[0]


def start(folder, concurrency, seconds):
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "tests.training_free.crash_run", str(folder), str(concurrency), str(seconds)]
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=REPOSITORY)


def kill_and_rerun(tmp_path, seed, kills, longest, seconds):
    """Kill real processes at random moments, run to the end, and compare with a run that nobody killed."""
    expected = learner(WORLD, failing=0.1)
    train(expected, WORLD, held_out=40)
    random, folder = Random(seed), tmp_path / f"run-{seed}"
    for _ in range(kills):
        process = start(folder, random.choice([1, 16]), seconds)
        try:
            assert process.stdout.readline() == "open\n"
            time.sleep(random.uniform(0.0, longest))
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    last = start(folder, 16, 0)
    assert last.communicate()[0].splitlines() == ["open", expected.report.status]
    run = learner(WORLD, folder, failing=0.1)
    assert run.library.check_integrity() == []
    assert export(run, tmp_path) == export(expected, tmp_path)


def test_killed_runs_end_with_the_same_library(tmp_path):
    kill_and_rerun(tmp_path, seed=0, kills=3, longest=0.8, seconds=0.002)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_runs_killed_many_times_end_with_the_same_library(tmp_path, seed):
    kill_and_rerun(tmp_path, seed=seed, kills=6, longest=1.0, seconds=0.003)


def test_results_are_files(tmp_path):
    run = learner(WHOLE, tmp_path)
    lessons = train(run, WHOLE)
    page = (tmp_path / "report.md").read_text()
    assert "Training-Free GRPO: finished" in page and "minimum detectable effect" in page
    assert (tmp_path / "system_prompt.txt").read_text().count("\n") == len(lessons)
    assert score(run, WHOLE, [item.record for item in run.library.records("lesson")]) == score(run, WHOLE)
    ungated = learner(WHOLE, tmp_path / "ungated", gate=None)
    train(ungated, WHOLE)
    assert "no acceptance gate" in (tmp_path / "ungated" / "report.md").read_text()

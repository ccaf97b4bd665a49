"""`grpo-ext train-free` over a real HTTP server: the result folder, Ctrl-C and a kill, budgets, and what is refused."""

import json
import signal
from pathlib import Path

import pytest

pytest.importorskip("httpx")

from tests.training_free.command_runs import WORLD, command, world_served, write_run
from trl_grpo_ext.cli.train_free import main
from trl_grpo_ext.experience import ExperienceLibrary
from trl_grpo_ext.training_free import system_prompt

FILES = {"library.db", "report.json", "report.md", "experiences.json", "lessons.json", "system_prompt.txt", "run.db"}


def results(folder: Path) -> dict[str, object]:
    """What a run has learned, and its report without what a resume may change."""
    report = json.loads((folder / "report.json").read_text("utf-8"))
    return {"report": report, "experiences": json.loads((folder / "experiences.json").read_text("utf-8"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run from beginning to end, its output, and the requests that it took."""
    folder = tmp_path_factory.mktemp("run")
    with world_served() as endpoint:
        process = command("train-free", write_run(folder, endpoint.url), folder=folder)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return folder / "out", output, len(endpoint.requests)


def test_the_result_folder(finished):
    folder, output, requests = finished
    assert {path.name for path in folder.iterdir() if "run.db-" not in path.name} - {"run.db.lock"} == FILES
    found = results(folder)
    report = found["report"]
    assert report["status"] == "finished" and report["spent"]["calls"] == requests
    assert found["experiences"] and list(found["experiences"]) == [f"G{n}" for n in range(len(found["experiences"]))]
    assert set(found["experiences"].values()) <= set(WORLD.truth())
    with ExperienceLibrary(folder / "library.db", create=False) as library:
        lessons = [item.record for item in library.records("lesson")]
    assert [lesson.text for lesson in lessons] == list(found["experiences"].values())
    assert (folder / "system_prompt.txt").read_text("utf-8") == system_prompt(lessons)
    assert "finished" in output and "library.db" in output
    # Without a terminal: a line for each step that is done.
    lines = [line for line in output.splitlines() if line.startswith("step ")]
    assert len(lines) == 2 and f"calls {requests}" in lines[-1] and "reward by step" in lines[-1]


def test_a_finished_run_asks_nothing_again(finished, capsys):
    folder, _, requests = finished
    with world_served() as endpoint:
        assert main([str(write_run(folder.parent, endpoint.url))]) == 0
        assert endpoint.requests == []
    assert f"{requests}" in json.dumps(results(folder)["report"]["spent"])


@pytest.mark.parametrize("kind", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_where_it_was(tmp_path, finished, kind):
    stopped = []

    def stop(count):
        # In the rollouts of the second step's gate.
        if count == finished[2] - 20 and not stopped:
            stopped.append(process.send_signal(kind))

    with world_served(before=stop) as endpoint:
        run = write_run(tmp_path, endpoint.url)
        process = command("train-free", run, folder=tmp_path)
        _, errors = process.communicate(timeout=60)
        assert stopped
        if kind == signal.SIGINT:
            assert process.returncode == 130 and "the same command continues" in errors and "Traceback" not in errors
            report = results(tmp_path / "out")["report"]
            assert report["status"] == "interrupted" and len(report["steps"]) == 1
        else:
            assert process.returncode == -signal.SIGKILL
        asked = len(endpoint.requests)
        assert main([str(run)]) == 0
        # What was under way, at most.
        assert len(endpoint.requests) - asked <= 20 + 16
    expected = results(finished[0])
    assert results(tmp_path / "out")["experiences"] == expected["experiences"]
    assert results(tmp_path / "out")["report"]["steps"] == expected["report"]["steps"]


def test_a_budget_stops_cleanly_and_more_of_it_goes_on(tmp_path, capsys, finished):
    with world_served() as endpoint:
        run = str(write_run(tmp_path, endpoint.url))
        assert main([run, "--set", "budget.max_calls=40"]) == 0
        assert (
            len(endpoint.requests) == 40 and "stopped: The budget is reached: max_calls=40" in capsys.readouterr().out
        )
        assert results(tmp_path / "out")["report"]["status"] == "stopped"
        assert (
            main([run, "--set", "budget.max_calls=4000", "--set", "budget.prices={'*': {prompt: 1, completion: 2}}"])
            == 0
        )
        assert len(endpoint.requests) == finished[2]
    found = results(tmp_path / "out")
    assert found["experiences"] == results(finished[0])["experiences"] and found["report"]["spent"]["cost"] > 0


def test_a_changed_setting_is_refused_with_the_difference(finished, capsys):
    folder = finished[0]
    with world_served() as endpoint:
        assert main([str(write_run(folder.parent, endpoint.url)), "--set", "config.num_generations=4"]) == 1
        assert endpoint.requests == []
    assert "config.num_generations: 5 -> 4" in capsys.readouterr().err


def test_a_server_that_is_not_there_ends_with_a_sentence(tmp_path, capsys):
    run = write_run(tmp_path, "http://127.0.0.1:9/v1")
    assert main([str(run)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: all 30 rollouts of step 0 failed") and "run the same command again" in error
    assert results(tmp_path / "out")["report"]["status"] == "interrupted"


def test_check_asks_nothing_and_writes_nothing(tmp_path, capsys):
    with world_served() as endpoint:
        assert main([str(write_run(tmp_path, endpoint.url)), "--check"]) == 0
        assert endpoint.requests == []
    assert not (tmp_path / "out").exists()
    assert (
        "6 problems to learn from, 24 held out for the gate; 2 steps of at most 6 problems" in capsys.readouterr().out
    )


def test_without_a_gate_nothing_is_held_out(tmp_path, capsys):
    with world_served() as endpoint:
        run = write_run(tmp_path, endpoint.url, gate=None, held_out="-", output_dir=str(tmp_path / "out"))
        assert main([str(run), "--set", "config.num_train_epochs=1"]) == 0
    found = results(tmp_path / "out")
    assert not found["report"]["gated"] and found["report"]["steps"][0]["accepted"]
    assert "no acceptance gate" in capsys.readouterr().out


def test_degraded_has_a_status_of_its_own(tmp_path):
    from dataclasses import replace

    broken = replace(WORLD, malformed=1.0)
    with world_served(broken) as endpoint:
        assert main([str(write_run(tmp_path, endpoint.url)), "--set", "config.num_train_epochs=1"]) == 3
    assert results(tmp_path / "out")["report"]["status"] == "degraded"

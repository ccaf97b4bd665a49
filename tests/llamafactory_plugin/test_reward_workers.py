"""Reward functions of files and packages in `--stage grpo`: worker processes, deadlines, error policies, opt-outs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from llamafactory_plugin import workflow
from llamafactory_plugin.errors import UsageError
from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.prepared import flags, prepare
from trl_grpo_ext.rewards import IsolatedReward

FILE = """
import os
import time

CALLS = []

def text(completion):
    return completion[0]["content"]

def vowels(completions, **kwargs):
    CALLS.append(len(completions))
    return [sum(letter in "aeiou" for letter in text(c)) / max(len(text(c)), 1) for c in completions]

def is_elsewhere(completions, trainer_pid, **kwargs):
    return [float(os.getpid() != pid) for pid in trainer_pid]

def rows_per_call(completions, trainer_state, log_metric, log_extra, **kwargs):
    log_metric("calls", len(CALLS))
    log_extra("step_seen", [trainer_state.global_step] * len(completions))
    CALLS.append(len(completions))
    return [float(len(completions))] * len(completions)

def hangs_at_step_1(completions, trainer_state, **kwargs):
    while trainer_state.global_step >= 1:
        time.sleep(1)
    return vowels(completions)

def breaks_here(completions, **kwargs):
    return [1 / 0 for _ in completions]

def state_of_the_trainer(completions, trainer_state, **kwargs):
    return [float(type(trainer_state).__name__ == "TrainerState")] * len(completions)
"""
VERL = """
from trl_grpo_ext.rewards import ScalarReward, VerlReward

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(ground_truth in solution_str), "length": len(solution_str), "source": data_source}

def short(response, answer):
    return -len(response) / 100 - (answer in response)

verl_score = VerlReward(compute_score, data_source="words", name="verl_score")
short_answer = ScalarReward(short, name="short_answer")
"""


@pytest.fixture
def rewards(workspace: Workspace) -> Path:
    path = workspace.folder / "rewards.py"
    path.write_text(FILE, encoding="utf-8")
    rows = [row | {"trainer_pid": os.getpid()} for row in tiny.questions(16)]
    tiny.write_dataset(
        workspace.data,
        "words",
        rows,
        columns={"prompt": "instruction", "response": "output", "extra": ["trainer_pid"]},
    )
    return path


def logged(workspace: Workspace, name: str) -> list[float]:
    return [entry[name] for entry in workspace.log() if name in entry]


def test_a_function_of_a_file_runs_in_a_worker_by_default(workspace: Workspace, rewards: Path) -> None:
    """One worker per file, which sees all rows of a call; what the functions log is in the trainer's log and file."""
    workspace.run(reward_funcs=f"{rewards}:is_elsewhere,{rewards}:rows_per_call")
    rows = workspace.completions()
    assert {row["rewards"]["is_elsewhere"] for row in rows} == {1.0}
    assert {row["rewards"]["rows_per_call"] for row in rows} == {8.0}
    assert [row["extra"] for row in rows] == [{"step_seen": 0}] * 8 + [{"step_seen": 1}] * 8
    assert logged(workspace, "calls") == [0, 1], "the module's state is not kept between calls"
    assert logged(workspace, "reward_runtime/is_elsewhere/rows") == [8, 8]


def test_in_process_is_the_way_out(workspace: Workspace, rewards: Path) -> None:
    names = ("is_elsewhere", "rows_per_call", "state_of_the_trainer")
    workspace.run(reward_funcs=[f"{rewards}:{name}" for name in names], grpo_reward_in_process=True)
    rows = workspace.completions()
    assert {row["rewards"]["is_elsewhere"] for row in rows} == {0.0}
    assert {row["rewards"]["state_of_the_trainer"] for row in rows} == {1.0}
    assert logged(workspace, "calls") == [0, 1] and rows[-1]["extra"] == {"step_seen": 1}


def test_a_function_that_hangs_is_killed_and_training_goes_on(workspace: Workspace, rewards: Path) -> None:
    began = time.monotonic()
    workspace.run(reward_funcs=f"{rewards}:hangs_at_step_1", grpo_reward_timeout=1, grpo_reward_errors="skip")
    assert time.monotonic() - began < 60
    given = [row["rewards"]["hangs_at_step_1"] for row in workspace.completions()]
    assert None not in given[:8] and given[8:] == [None] * 8
    assert logged(workspace, "reward_runtime/hangs_at_step_1/timeouts") == [0, 8]


def test_functions_of_two_files_run_at_the_same_time(workspace: Workspace) -> None:
    for name in ("first", "second"):
        (workspace.folder / f"{name}.py").write_text(
            f"import time\ndef {name}(completions, log_metric, **kwargs):\n"
            f"    log_metric('{name}/begin', time.time() % 1e5)\n    time.sleep(1)\n"
            f"    log_metric('{name}/end', time.time() % 1e5)\n    return [1.0] * len(completions)\n",
            encoding="utf-8",
        )
    files = [f"{workspace.folder / f'{name}.py'}:{name}" for name in ("first", "second")]
    workspace.run(reward_funcs=files, max_steps=2)
    begins = {name: logged(workspace, f"{name}/begin")[-1] for name in ("first", "second")}
    ends = {name: logged(workspace, f"{name}/end")[-1] for name in ("first", "second")}
    assert max(begins.values()) < min(ends.values()), (begins, ends)


def test_an_error_ends_the_command_with_the_line_of_the_users_file(workspace: Workspace, rewards: Path) -> None:
    result = workspace.cli(workspace.yaml(reward_funcs="rewards.py:breaks_here"), check=False)
    assert result.returncode != 0
    line = next(number for number, text in enumerate(FILE.splitlines(), 1) if "1 / 0" in text)
    assert f'File "{rewards}", line {line}, in breaks_here' in result.stderr
    assert "ZeroDivisionError" in result.stderr and "grpo_reward_errors: skip" in result.stderr


def test_a_number_instead_of_an_error_as_flags(workspace: Workspace, rewards: Path) -> None:
    from llamafactory.train.tuner import run_exp

    arguments = workspace.arguments(reward_funcs=f"{rewards}:breaks_here", max_steps=1)
    run_exp([*flags(arguments), "--grpo_reward_errors=-0.5", "--grpo-reward-timeout", "5"])
    assert {row["reward"] for row in workspace.completions()} == {-0.5}


def test_adapters_of_other_conventions_through_the_command_line(workspace: Workspace) -> None:
    """verl's compute_score and the mission's fn(response, answer), built in a reward file, isolated with their file."""
    (workspace.folder / "rewards.py").write_text(VERL, encoding="utf-8")
    result = workspace.cli(workspace.yaml(reward_funcs="rewards.py:verl_score,rewards.py:short_answer"))
    assert "rewards: verl_score, short_answer" in result.stdout
    rows = workspace.completions()
    for row in rows:
        found = row["solution"] in row["completion"]
        assert row["rewards"]["verl_score"] == found
        assert row["rewards"]["short_answer"] == pytest.approx(-len(row["completion"]) / 100 - found)
        assert row["extra"] == {"verl_score/source": "words"}
    lengths = [sum(len(row["completion"]) for row in rows[start : start + 8]) / 8 for start in (0, 8)]
    assert logged(workspace, "rewards/verl_score/length") == pytest.approx(lengths)
    assert logged(workspace, "rewards/verl_score/errors") == [0, 0]


def test_a_worker_has_no_network_unless_allowed(workspace: Workspace) -> None:
    import socket

    (workspace.folder / "rewards.py").write_text(
        "import socket\n"
        "def asks(completions, port, **kwargs):\n"
        "    socket.create_connection(('127.0.0.1', port[0]), timeout=5).close()\n"
        "    return [1.0] * len(completions)\n",
        encoding="utf-8",
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        rows = [row | {"port": server.getsockname()[1]} for row in tiny.questions(16)]
        tiny.write_dataset(workspace.data, "ports", rows)
        options = {"dataset": "ports", "grpo_extra_columns": "port", "max_steps": 1, "grpo_reward_errors": 0}
        options |= {"reward_funcs": f"{workspace.folder / 'rewards.py'}:asks"}
        (reward,) = prepare(workspace.arguments(**options)).rewards
        if not reward.runtime.start()[0].network:
            pytest.skip("the kernel grants no network namespace here")
        workspace.run(**options)
        assert {row["reward"] for row in workspace.completions()} == {0.0}
        workspace.run(**options, grpo_reward_network=True, overwrite_output_dir=True)
        assert {row["reward"] for row in workspace.completions()} == {1.0}


def test_built_ins_stay_in_the_trainer(workspace: Workspace, rewards: Path) -> None:
    built_in, own = prepare(workspace.arguments(reward_funcs=f"exact_match,{rewards}:vowels")).rewards
    assert not isinstance(built_in, IsolatedReward)
    assert isinstance(own, IsolatedReward) and own.__name__ == "vowels"


class TestRefused:
    @pytest.fixture(autouse=True)
    def no_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workflow, "load_model", lambda *_: pytest.fail("the model was loaded"))

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (
                {"grpo_reward_timeout": 0},
                "grpo_reward_timeout must be a number of at least 0.001, not 0; it counts seconds",
            ),
            ({"grpo_reward_timeout": "5s"}, "grpo_reward_timeout must be a number"),
            ({"grpo_reward_errors": "ignore"}, "must be raise (stop), skip (no reward for these rows) or a number"),
            ({"grpo_reward_errors": True}, "not True"),
            ({"grpo_reward_errors": ".nan"}, "or a number to give instead, not '.nan'"),
            ({"grpo_reward_in_process": "yes"}, "grpo_reward_in_process must be true or false, not 'yes'"),
            ({"grpo_reward_network": 1}, "grpo_reward_network must be true or false, not 1"),
        ],
    )
    def test_values(self, workspace: Workspace, options: dict[str, Any], sentence: str) -> None:
        assert sentence in workspace.refused(error=UsageError, **options)

    def test_an_async_function_in_process(self, workspace: Workspace) -> None:
        (workspace.folder / "rewards.py").write_text("async def later(completions, **kwargs):\n    return []\n")
        sentence = workspace.refused(
            error=UsageError, reward_funcs=f"{workspace.folder / 'rewards.py'}:later", grpo_reward_in_process=True
        )
        assert "'later' is async" in sentence

"""reasoning-gym's own verifiers, in sandboxed workers; with the real package, where it is installed."""

import json
import os
import sys
import time

import pytest

from trl_grpo_ext.rewards import (
    IsolatedReward,
    RewardError,
    check_reward_columns,
    reasoning_gym_reward,
    reasoning_gym_rows,
    resolve_reward_funcs,
    sandbox_capabilities,
)
from trl_grpo_ext.rewards.runtime import RewardRuntime

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed (the extra `reasoning-gym`)")
CAPABILITIES = sandbox_capabilities() if sys.platform == "linux" else None
pytestmark = pytest.mark.skipif(
    CAPABILITIES is None or not CAPABILITIES.sandbox,
    reason=f"no sandbox on this machine: {CAPABILITIES.reasons if CAPABILITIES else sys.platform}",
)
TASKS = ("countdown", "basic_arithmetic", "sudoku", "propositional_logic", "zebra_puzzles")


@pytest.fixture(scope="module")
def runtime():
    with RewardRuntime(workers=1) as shared:
        yield shared


@pytest.fixture(scope="module")
def reward(runtime):
    return reasoning_gym_reward(runtime=runtime, deadline=2.0)


def score(reward, rows, completions):
    columns = {name: [row[name] for row in rows] for name in ("answer", "metadata")}
    return reward(prompts=[row["prompt"] for row in rows], completions=completions, **columns)


def test_rows_survive_a_data_set_and_score_as_in_the_package(reward):
    from datasets import Dataset
    from reasoning_gym import create_dataset

    for task in TASKS:
        entries = list(create_dataset(task, size=2, seed=7))
        scorer = create_dataset(task, size=2, seed=7).score_answer
        rows = list(Dataset.from_list(reasoning_gym_rows(task, size=2, seed=7)))
        check_reward_columns(reward, list(rows[0]))
        for answers in ([entry["answer"] or "" for entry in entries], ["42", "x"]):
            completions = [f"<think>2</think> <answer>{answer}</answer>" for answer in answers]
            expected = [
                scorer(answer, entry) if answer else 0.0 for answer, entry in zip(answers, entries, strict=True)
            ]
            assert score(reward, rows, completions) == expected


def test_answers_without_tags_and_metadata_as_it_comes(reward, runtime):
    from reasoning_gym import create_dataset

    (entry,) = create_dataset("basic_arithmetic", size=1, seed=1)
    rows = [{"prompt": entry["question"], **entry}]
    assert score(reward, rows, [f"<answer>{entry['answer']}</answer>"]) == [1.0]
    assert score(reward, rows, [entry["answer"]]) == [0.0]
    assert score(reasoning_gym_reward(runtime=runtime, tag=None, name="whole"), rows, [entry["answer"]]) == [1.0]


def test_a_verifier_that_raises_scores_nothing(reward):
    rows = reasoning_gym_rows("prime_factorization", size=1, seed=3)
    assert score(reward, rows, ["<answer>wrong</answer>"]) == [0.0]


def test_rows_of_no_task_stop_the_run(reward):
    for metadata in ({}, {"source_dataset": "no_such_task"}, json.dumps([1])):
        with pytest.raises(RewardError, match=r"source_dataset|no_such_task"):
            score(reward, [{"prompt": "p", "answer": "1", "metadata": metadata}], ["<answer>1</answer>"])


def scorers_that_execute():
    """Tasks of the package whose verifier executes Python that it finds in an answer: tried, not remembered."""
    return ("countdown", "puzzle24", "simple_equations", "polynomial_equations", "simple_integration")


def test_python_in_an_answer_is_not_run_in_the_trainer(reward, tmp_path):
    """The published one: sympy's parser, which several verifiers use, is `eval`."""
    marker = tmp_path / "owned"
    attack = f"__import__('os').system('touch {marker}; kill -9 {os.getpid()}')"
    before = set(sys.modules)
    for task in scorers_that_execute():
        rows = reasoning_gym_rows(task, size=1, seed=1)
        (value,) = score(reward, rows, [f"<answer>{attack}</answer>"])
        assert value is not None and value < 0.5
    assert not marker.exists()
    assert "reasoning_gym" in before


def test_the_attack_is_a_real_one(tmp_path):
    """The same answer in a worker that may write there: at least one verifier of this version executes it."""
    marker = tmp_path / "owned"
    attack = f"__import__('os').system('touch {marker}')"
    with RewardRuntime(workers=1, read_only=False) as open_runtime:
        careless = reasoning_gym_reward(runtime=open_runtime, allow_unsandboxed=True, deadline=5.0)
        executed = []
        for task in scorers_that_execute():
            score(careless, reasoning_gym_rows(task, size=1, seed=1), [f"<answer>{attack}</answer>"])
            executed += [task] if marker.exists() else []
            marker.unlink(missing_ok=True)
    if not executed:
        pytest.skip("no verifier of this version executes answers")


def test_an_answer_that_never_returns(reward):
    row = {
        "prompt": "p",
        "answer": "95-38-47",
        "metadata": {"source_dataset": "countdown", "numbers": [95, 38, 47], "target": 10},
    }
    row["metadata"] |= {"expression": "95-38-47"}
    score(reward, [row], ["<answer>1</answer>"])
    started = time.monotonic()
    values = score(
        reward, [row] * 3, [f"<answer>{text}</answer>" for text in ("95**38**47", "94**61**6**4", "95-38-47")]
    )
    assert values[2] == 1.0
    assert max(values[:2]) < 0.5
    # Two deadlines of 2 s; the worker and its imports stay.
    assert time.monotonic() - started < 7


def test_it_trains(make_tiny_trainer):
    rows = reasoning_gym_rows("basic_arithmetic", size=8, seed=2)
    (reward,) = resolve_reward_funcs("reasoning_gym")
    assert isinstance(reward, IsolatedReward)
    trainer = make_tiny_trainer([reward], [row | {"prompt": "say "} for row in rows])
    trainer.train()
    assert trainer.state.global_step == 3
    assert reward.stats()["rows"] > 0

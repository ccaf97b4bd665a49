"""`grpo_reward_composition` and `grpo_collapse_guard`: out of a YAML file into real training."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamafactory_plugin import workflow
from llamafactory_plugin.errors import UsageError
from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.prepared import flags, prepare

FILE = """
def text(completion):
    return completion[0]["content"]

def vowels(completions, **kwargs):
    return [sum(letter in "aeiou" for letter in text(c)) / max(len(text(c)), 1) for c in completions]

def has_e(completions, **kwargs):
    return [float("e" in text(c)) for c in completions]

def length(completions, **kwargs):
    return [float(len(text(c))) for c in completions]

def often_right(completions, **kwargs):
    return [float(len(text(c)) % 2) for c in completions]

CALLS = []

def falls(completions, **kwargs):
    CALLS.append(1)
    return [1.0 / len(CALLS)] * len(completions)

RISES = []

def rises(completions, **kwargs):
    RISES.append(1)
    return [float(len(RISES))] * len(completions)
"""


@pytest.fixture(autouse=True)
def rewards(workspace: Workspace) -> None:
    (workspace.folder / "rewards.py").write_text(FILE, encoding="utf-8")


def own(workspace: Workspace, name: str) -> str:
    return f"{workspace.folder / 'rewards.py'}:{name}"


def composition(path: str = "rewards.py", **options: Any) -> dict[str, Any]:
    decay = {"kind": "linear", "start": 1.0, "end": 0.0}
    return {
        "rewards": [
            {"reward": f"{path}:has_e", "name": "format", "weight": 0.5, "schedule": decay},
            {"reward": f"{path}:vowels"},
            {"reward": "exact_match", "weight": 2.0},
        ],
        "gates": [{"component": "format", "opens": "vowels"}],
        **options,
    }


def logged(workspace: Workspace, name: str) -> list[float]:
    return [entry[name] for entry in workspace.log() if name in entry]


def test_a_composition_in_a_yaml_file(workspace: Workspace) -> None:
    """Every step's weights, gates and means are logged as they were, and the sum is what was trained on."""
    result = workspace.cli(workspace.yaml(grpo_reward_composition=composition(name="mixed"), max_steps=4))
    assert "rewards: mixed" in result.stdout
    assert logged(workspace, "mixed/format/weight") == pytest.approx([0.5, 0.375, 0.25, 0.125])
    rows = workspace.completions()
    for step in range(4):
        part, weight = rows[8 * step : 8 * step + 8], 0.5 * (1 - step / 4)
        texts = [row["completion"] for row in part]
        has_e = ["e" in text for text in texts]
        shares = [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]
        exact = [" ".join(row["completion"].split()) == row["solution"] for row in part]
        expected = [
            weight * form + (share if form else 0.0) + 2 * right
            for form, share, right in zip(has_e, shares, exact, strict=True)
        ]
        assert [row["reward"] for row in part] == pytest.approx(expected, abs=1e-6)
        assert logged(workspace, "mixed/format/mean")[step] == pytest.approx(sum(has_e) / 8)
        assert logged(workspace, "mixed/vowels/mean")[step] == pytest.approx(sum(shares) / 8)
        assert logged(workspace, "mixed/vowels/gated")[step] == pytest.approx(1 - sum(has_e) / 8)


def test_beside_reward_funcs_as_inline_json(workspace: Workspace) -> None:
    from llamafactory.train.tuner import run_exp

    value = json.dumps({"rewards": [own(workspace, "length")], "total": "rank"}, separators=(",", ":"))
    arguments = workspace.arguments(reward_funcs=own(workspace, "vowels"), reward_weights="0,1", max_steps=1)
    run_exp([*flags(arguments), "--grpo_reward_composition", value])
    rows = workspace.completions()
    for start in (0, 4):
        group = rows[start : start + 4]
        lengths = [len(row["completion"]) for row in group]
        ranks = [sum(other < one for other in lengths) - sum(other > one for other in lengths) for one in lengths]
        assert [row["reward"] for row in group] == pytest.approx([rank / 3 for rank in ranks], abs=1e-6)


def test_evaluation_logs_the_components_too(workspace: Workspace) -> None:
    mapping = composition(str(workspace.folder / "rewards.py"))
    workspace.run(grpo_reward_composition=mapping, do_eval=True, val_size=4, max_steps=1)
    metrics = json.loads((workspace.output / "eval_results.json").read_text(encoding="utf-8"))
    assert {"eval_composite/vowels/mean", "eval_composite/format/weight"} <= metrics.keys()


def guard_data(workspace: Workspace) -> dict[str, Any]:
    unlabelled = [{"instruction": row["instruction"]} for row in tiny.questions(12)]
    tiny.write_dataset(workspace.data, "unlabelled", unlabelled, columns={"prompt": "instruction"})
    tiny.write_dataset(workspace.data, "canaries", tiny.questions(12, seed=5))
    return {"dataset": "unlabelled,canaries", "grpo_reward_in_process": True}


def test_a_guard_with_a_canary_set_stops_a_collapsing_run(workspace: Workspace) -> None:
    """The pseudo-reward rises and the truth on canaries falls with every call: three alarms, and training ends."""
    guard = {
        "truth": own(workspace, "falls"),
        "canary_dataset": "canaries",
        "policy": "stop",
        "window": 2,
        "patience": 3,
    }
    workspace.run(
        **guard_data(workspace),
        reward_funcs=own(workspace, "rises"),
        grpo_collapse_guard=guard,
        max_steps=40,
        per_device_train_batch_size=16,
    )
    state = json.loads((workspace.output / "trainer_state.json").read_text(encoding="utf-8"))
    assert 4 <= state["global_step"] < 12, state["global_step"]
    assert logged(workspace, "guarded_rises/collapsed")[-1] == 1.0
    accuracies = logged(workspace, "canary_accuracy")
    assert accuracies == sorted(accuracies, reverse=True)
    rows = workspace.completions()
    for row in rows:
        assert (row["reward"] is None) == bool(row.get("solution")), row
        assert row["advantage"] == 0 or row["reward"] is not None


def test_label_free_with_a_guard_of_a_column(workspace: Workspace) -> None:
    rows = [row | {"known": index % 2 == 0} for index, row in enumerate(tiny.questions(16))]
    tiny.write_dataset(workspace.data, "mixed", rows)
    workspace.run(
        dataset="mixed",
        grpo_extra_columns="known",
        reward_funcs="label_free",
        grpo_collapse_guard={"truth": "exact_match", "canary_column": "known"},
        per_device_train_batch_size=16,
    )
    assert logged(workspace, "canary_accuracy") and all(
        0 <= value <= 1 for value in logged(workspace, "canary_accuracy")
    )
    assert "guarded_label_free" in workspace.completions()[0]["rewards"]


class TestRefused:
    @pytest.fixture(autouse=True)
    def no_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workflow, "load_model", lambda *_: pytest.fail("the model was loaded"))

    @pytest.mark.parametrize(
        ("mapping", "sentence"),
        [
            ({"reward": ["exact_match"]}, "unknown key 'reward', did you mean 'rewards'?"),
            ({"gates": []}, "the key 'rewards' is missing"),
            ({"rewards": "exact_match"}, "rewards must be a list, not 'exact_match'"),
            ({"rewards": [{"reward": "exact_match", "wieght": 2}]}, "unknown key 'wieght', did you mean 'weight'?"),
            ({"rewards": ["exact_mtch"]}, "did you mean 'exact_match'?"),
            ({"rewards": ["nowhere.py:f"]}, "Reward file 'nowhere.py' does not exist"),
            (
                {"rewards": [{"reward": "exact_match", "weight": "much"}]},
                "weight of 'exact_match' must be a finite number",
            ),
            ({"rewards": ["exact_match"], "total": "standardize"}, "did you mean 'standardise'?"),
            ({"rewards": ["exact_match"], "gates": [{"component": "exact_match"}]}, "the key 'opens' is missing"),
            ({"rewards": ["exact_match", "exact_match"]}, "the name 'exact_match' is taken"),
            ("[1]", "is not a JSON object"),
        ],
    )
    def test_compositions(self, workspace: Workspace, mapping: Any, sentence: str) -> None:
        refused = workspace.refused(error=UsageError, grpo_reward_composition=mapping)
        assert refused.startswith("grpo_reward_composition: ") and sentence in refused

    @pytest.mark.parametrize(
        ("mapping", "sentence"),
        [
            ({"canary_dataset": "words"}, "the key 'truth' is missing"),
            ({"truth": "exact_match", "polcy": "stop"}, "unknown key 'polcy'; did you mean 'policy'?"),
            ({"truth": "exact_match", "policy": "halt"}, "policy must be one of warn, stop, fallback, not 'halt'"),
            ({"truth": "exact_match", "policy": "fallback"}, "go together"),
            ({"truth": "exact_match", "window": 0}, "window must be a whole number of at least 1"),
            ({"truth": "exact_mtch"}, "did you mean 'exact_match'?"),
            ({"truth": "exact_match", "canary_dataset": 3}, "must be the name of a dataset, not 3"),
            ({"truth": "exact_match", "canary_dataset": "words", "canary_column": "known"}, "keep one"),
            (
                {"truth": "exact_match", "canary_dataset": "wrds"},
                "'wrds' is not in dataset (words); did you mean 'words'?",
            ),
            ({"truth": "exact_match", "canary_dataset": "words"}, "every dataset is a canary_dataset"),
            ({"truth": "exact_match"}, "the data has no column 'canary'"),
        ],
    )
    def test_guards(self, workspace: Workspace, mapping: Any, sentence: str) -> None:
        refused = workspace.refused(error=UsageError, reward_funcs="label_free", grpo_collapse_guard=mapping)
        assert refused.startswith("grpo_collapse_guard: ") and sentence in refused

    def test_a_guard_of_several_rewards(self, workspace: Workspace) -> None:
        refused = workspace.refused(
            error=UsageError, reward_funcs="label_free,tag_format", grpo_collapse_guard={"truth": "exact_match"}
        )
        assert "it guards one reward, and this run has 2" in refused

    def test_no_canary_in_the_column(self, workspace: Workspace) -> None:
        tiny.write_dataset(workspace.data, "mixed", [row | {"canary": False} for row in tiny.questions(16)])
        refused = workspace.refused(
            error=UsageError,
            dataset="mixed",
            grpo_extra_columns="canary",
            reward_funcs="label_free",
            grpo_collapse_guard={"truth": "exact_match"},
        )
        assert "no row of train_dataset has a true value in 'canary'" in refused

    @pytest.mark.parametrize(
        "rewards",
        [{"reward_funcs": "label_free"}, {"grpo_reward_composition": {"rewards": ["exact_match"], "total": "rank"}}],
    )
    def test_groups_that_are_split_between_processes(self, workspace: Workspace, rewards: Any) -> None:
        """2 rows per process and 2 processes make whole groups of 4, of which no process sees one."""
        from unittest import mock

        with mock.patch("llamafactory_plugin.batches.check_batch"):
            refused = workspace.refused(
                error=UsageError, per_device_train_batch_size=2, gradient_accumulation_steps=1, **rewards
            )
        assert "compares the completions of a group" in refused or "multiple" in refused


def test_a_component_that_is_the_reward_model_is_no_second_reward(workspace: Workspace) -> None:
    api = {"reward_model": "http://127.0.0.1:9/score", "reward_model_type": "api"}
    mapping = {"rewards": ["reward_model", "tag_format"]}
    (only,) = prepare(workspace.arguments(**api, grpo_reward_composition=mapping)).rewards
    assert list(only.rewards) == ["reward_model", "tag_format"] and only.group_size == 4

"""Losses, schedules and sampling from YAML: what reaches the config, and what is refused before a model is loaded."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from llamafactory_plugin import arguments, workflow
from llamafactory_plugin.config_mapping import in_yaml_words, own_fields
from llamafactory_plugin.errors import UsageError
from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.prepared import flags, prepare
from trl_grpo_ext import ExtendedGRPOConfig
from trl_grpo_ext.losses.config import LossType
from trl_grpo_ext.presets import PRESETS
from trl_grpo_ext.rewards import resolve_reward_funcs

# Beside each option, what it needs to mean anything; the value is not the default.
OPTIONS: dict[str, dict[str, Any]] = {
    "loss_backend": {"loss_backend": "extended"},
    "loss_fn": {"loss_fn": "tests.conformance.losses_for_tests:reinforce"},
    "clip_anchor": {"clip_anchor": "both"},
    "clip_kind": {"clip_kind": "none"},
    "soft_temperature_positive": {"clip_kind": "soft", "soft_temperature_positive": 2.0},
    "soft_temperature_negative": {"clip_kind": "soft", "soft_temperature_negative": 2},
    "cov_fraction": {"clip_kind": "kl_cov", "cov_fraction": 0.1},
    "cov_low": {"clip_kind": "clip_cov", "cov_low": -1.0},
    "cov_high": {"clip_kind": "clip_cov", "cov_high": 4},
    "cov_kl_coef": {"clip_kind": "kl_cov", "cov_kl_coef": 0.5},
    "clip_schedule": {"clip_schedule": "linear", "clip_final_factor": 0.5},
    "clip_final_factor": {"clip_schedule": "cosine", "clip_final_factor": 0.5},
    "clip_target_fraction": {"clip_schedule": "adaptive", "clip_target_fraction": 0.2},
    "kl_estimator": {"kl_estimator": "k1"},
    "kl_place": {"kl_place": "reward"},
    "kl_target": {"kl_target": 0.02},
    "advantage_baseline": {"advantage_baseline": "median"},
    "advantage_scale": {"advantage_scale": "mad"},
    "advantage_ddof": {"advantage_ddof": 0},
    "advantage_eps": {"advantage_eps": 1e-6},
    "advantage_floor": {"advantage_floor": 0.1},
    "advantage_clip": {"advantage_clip": 2},
    "advantage_ranks": {"advantage_ranks": True},
    "zero_variance_groups": {"zero_variance_groups": "drop"},
    "dynamic_sampling_rounds": {"dynamic_sampling_rounds": 2},
    "group_filter": {"group_filter": "shortest", "group_filter_keep": 2},
    "group_filter_keep": {"group_filter": "reward_per_token", "group_filter_keep": 3},
    "curriculum_column": {"curriculum_column": "level"},
    "curriculum_band": {"curriculum_column": "level", "curriculum_band": [0.4, 0.6]},
    "curriculum_step": {"curriculum_column": "level", "curriculum_step": 0.1},
    "curriculum_solved_reward": {"curriculum_column": "level", "curriculum_solved_reward": -0.5},
    "loss_context": {"loss_context": "plain"},
    "off_policy_correction": {"loss_context": "plain", "off_policy_correction": "shape"},
    "off_policy_cap": {"loss_context": "plain", "off_policy_correction": "truncate", "off_policy_cap": 4},
    "off_policy_gamma": {"loss_context": "plain", "off_policy_correction": "shape", "off_policy_gamma": 0.2},
}
# Options that are on or off and need nothing else: those of the batches.
SWITCHES = {
    item.name: {item.name: True}
    for item in dataclasses.fields(ExtendedGRPOConfig)
    if item.type in (bool, bool | None) and item.name in own_fields(ExtendedGRPOConfig) - OPTIONS.keys()
}


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "load_model", lambda *_: pytest.fail("the model was loaded"))


@pytest.fixture
def levels(workspace: Workspace) -> Workspace:
    """A dataset with a difficulty."""
    rows = [row | {"level": index % 4} for index, row in enumerate(tiny.questions(16))]
    tiny.write_dataset(workspace.data, "levels", rows)
    workspace.defaults |= {"dataset": "levels"}
    return workspace


def test_every_option_has_a_value_here() -> None:
    assert set(OPTIONS | SWITCHES) == own_fields(ExtendedGRPOConfig) - {"eval_temperature"}  # grpo_eval_temperature


@pytest.mark.parametrize("name", OPTIONS | SWITCHES)
def test_every_option_reaches_the_config(levels: Workspace, name: str) -> None:
    beta = 0.1 if name.startswith("kl_") else 0.0
    given = (OPTIONS | SWITCHES)[name]
    # Without a library there is nothing that a loss on plain prompts would leave out.
    library = str(levels.folder / "experiences.db") if "loss_context" in given else None
    config = prepare(levels.arguments(grpo_config=given, grpo_beta=beta, experience_library=library)).config
    assert type(config) is ExtendedGRPOConfig
    assert {key: getattr(config, key) for key in given} == given
    assert name in config.changed((name,))


def test_there_is_one_table_of_presets_and_all_loss_types() -> None:
    fields = arguments.GRPOArguments.__dataclass_fields__
    assert arguments._choices(fields["grpo_preset"].type) == tuple(PRESETS)
    assert set(arguments._choices(fields["grpo_loss_type"].type)) == set(get_args(LossType))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_flag(workspace: Workspace, name: str) -> None:
    run = prepare([*flags(workspace.defaults), "--grpo_preset", name])
    assert {option: getattr(run.config, option) for option in PRESETS[name]} == PRESETS[name]
    assert run.run.finetuning_args.use_ref_model is (name == "reference_clip")


def test_the_curriculum_s_column_comes_along_by_itself(levels: Workspace) -> None:
    run = prepare(levels.arguments(grpo_config={"curriculum_column": "level"}))
    assert sorted(set(run.train["level"])) == [0, 1, 2, 3]
    named = prepare(levels.arguments(grpo_config={"curriculum_column": "level"}, grpo_extra_columns="level"))
    assert named.train.column_names == run.train.column_names
    assert "level" not in prepare(levels.arguments()).train.column_names


LOSS_FILE = """
from trl_grpo_ext import LossInputs, LossOutputs

def mine(inputs: LossInputs) -> LossOutputs:
    return LossOutputs((-inputs.advantages.unsqueeze(1) * inputs.logps * inputs.mask).sum(), {})

def longest(rewards, lengths):
    return lengths.float()
"""


def test_functions_of_a_file_beside_the_yaml(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace.folder / "losses.py").write_text(LOSS_FILE, encoding="utf-8")
    mapping = {"loss_fn": "losses.py:mine", "group_filter": "losses.py:longest", "group_filter_keep": 2}
    path = workspace.yaml(grpo_config=mapping)
    elsewhere = workspace.folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(sys, "argv", ["llamafactory-cli", str(path)])
    config = prepare(None).config  # type: ignore[arg-type]
    module, _, function = config.loss_fn.partition(":")
    assert function == "mine" and Path(sys.modules[module].__file__ or "") == workspace.folder / "losses.py"
    assert config.group_filter == f"{module}:longest"


# What is set -> pieces of the sentence; each names the user's own keys.
REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"grpo_config": {"clip_anchr": "old"}}, ["grpo_config.clip_anchr", "did you mean 'clip_anchor'?"]),
    ({"grpo_config": {"clip_anchor": "refrence"}}, ["grpo_config.clip_anchor", "did you mean 'reference'?"]),
    ({"grpo_config": {"clip_kind": 5}}, ["grpo_config.clip_kind must be str"]),
    ({"grpo_config": {"advantage_ranks": "yes"}}, ["grpo_config.advantage_ranks must be bool"]),
    ({"grpo_config": {"dynamic_sampling_rounds": -1}}, ["grpo_config.dynamic_sampling_rounds must be", "-1"]),
    ({"grpo_config": {"dynamic_sampling_rounds": 1.5}}, ["grpo_config.dynamic_sampling_rounds must be int"]),
    ({"grpo_config": {"kl_target": 0.1}}, ["grpo_config.kl_target=0.1", "grpo_beta=0.0", "set grpo_beta above 0"]),
    ({"grpo_config": {"kl_place": "reward"}}, ["grpo_config.kl_place='reward'", "grpo_beta"]),
    ({"grpo_config": {"clip_kind": "asymmetric"}}, ["grpo_config.clip_kind 'asymmetric' needs grpo_clip_range_high"]),
    ({"grpo_config": {"clip_kind": "dual", "delta": 1.1}}, ["needs a grpo_config.delta above 1"]),
    ({"grpo_config": {"clip_schedule": "linear"}}, ["grpo_config.clip_schedule", "grpo_config.clip_final_factor"]),
    (
        {"grpo_config": {"clip_schedule": "linear", "clip_final_factor": 0.5, "clip_kind": "none"}},
        ["grpo_config.clip_schedule 'linear' does nothing with grpo_config.clip_kind 'none'"],
    ),
    ({"grpo_config": {"eval_temperature": 0.5}}, ["set grpo_eval_temperature beside grpo_config"]),
    ({"grpo_config": {"loss_type": "grpo"}}, ["set grpo_loss_type beside grpo_config"]),
    ({"grpo_loss_type": "token_men"}, ["grpo_loss_type must be one of", "did you mean 'token_mean'?"]),
    ({"grpo_preset": "dapoo"}, ["grpo_preset must be one of", "did you mean 'dapo'?"]),
    (
        {"grpo_preset": "rloo", "grpo_config": {"clip_schedule": "adaptive", "clip_target_fraction": 0.1}},
        ["grpo_config.clip_kind 'none'", "grpo_config.clip_kind comes from grpo_preset: rloo."],
    ),
    (
        {"grpo_preset": "gmpo", "grpo_config": {"delta": 3.0}},
        ["grpo_config.importance_sampling_level 'geometric'", "comes from grpo_preset: gmpo."],
    ),
    (
        {"grpo_scale_rewards": "none", "grpo_config": {"advantage_scale": "mad"}},
        ["grpo_config.advantage_scale='mad' and grpo_scale_rewards='none' say two things"],
    ),
    (
        {"grpo_loss_type": "bnpo", "grpo_config": {"zero_variance_groups": "keep_for_normaliser"}},
        ["grpo_config.zero_variance_groups='keep_for_normaliser'", "grpo_loss_type='bnpo'"],
    ),
    ({"grpo_config": {"group_filter": "shortest"}}, ["grpo_config.group_filter ('shortest')", "group_filter_keep"]),
    (
        {"grpo_config": {"group_filter": "shortest", "group_filter_keep": 4}},
        ["grpo_config.group_filter_keep", "grpo_group_size - 1 (3)"],
    ),
    ({"grpo_config": {"curriculum_step": 0.1}}, ["grpo_config.curriculum_step=0.1", "grpo_config.curriculum_column"]),
    (
        {"grpo_config": {"curriculum_column": "level", "curriculum_band": 0.5}},
        ["grpo_config.curriculum_band must be a list of numbers", "0.5"],
    ),
    (
        {"grpo_config": {"curriculum_column": "level", "curriculum_band": [0.6, 0.5]}},
        ["grpo_config.curriculum_band must be [low, high]"],
    ),
    ({"grpo_config": {"curriculum_column": "levle"}}, ["has no column 'levle'", "did you mean 'level'?"]),
    ({"grpo_config": {"curriculum_column": "output"}}, ["grpo_config.curriculum_column: row 0 must hold a finite"]),
    ({"grpo_config": {"loss_fn": "no_such.py:mine"}}, ["grpo_config.loss_fn: there is no file 'no_such.py'"]),
    (
        {"grpo_config": {"loss_fn": "broken.py:mine"}},
        ["grpo_config.loss_fn", "broken.py fails at import with KeyError"],
    ),
    ({"grpo_config": {"loss_fn": "empty.py:mine"}}, ["grpo_config.loss_fn", "can't be imported", "'mine'"]),
    ({"grpo_config": {"loss_fn": "mine"}}, ["grpo_config.loss_fn must look like"]),
    (
        {"grpo_config": {"loss_fn": "empty.py:KEPT", "clip_kind": "none"}},
        ["grpo_config.clip_kind does nothing with grpo_config.loss_fn"],
    ),
    ({"grpo_reward_composition": {"rewards": ["self_certainty"]}}, ["self_certainty", "name it in reward_funcs"]),
]


@pytest.mark.parametrize(("given", "parts"), REFUSED, ids=lambda value: str(value)[:90])
def test_refused(levels: Workspace, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], parts: list[str]) -> None:
    monkeypatch.chdir(levels.folder)
    (levels.folder / "broken.py").write_text("{}['x']\n", encoding="utf-8")
    (levels.folder / "empty.py").write_text("KEPT = print\n", encoding="utf-8")
    sentence = levels.refused(error=UsageError, **given)
    assert [part for part in parts if part not in sentence] == [], sentence


def test_a_redrawn_group_is_not_split_over_processes() -> None:
    from llamafactory_plugin.rewards import check_redrawn_groups

    grouped = resolve_reward_funcs("label_free")
    with pytest.raises(UsageError, match="dynamic_sampling_rounds: label_free compares"):
        check_redrawn_groups(grouped, 1, 2)
    check_redrawn_groups(grouped, 1, 1)
    check_redrawn_groups(grouped, 0, 2)
    check_redrawn_groups(resolve_reward_funcs("exact_match"), 1, 2)


def test_words_inside_other_words_paths_and_values_stay() -> None:
    sentence = "beta=0.0 with loss_fn='a/beta.py:beta' and grpo_beta, betas, 'delta' and delta: set beta."
    said = in_yaml_words(sentence, ExtendedGRPOConfig, {"delta": 1.0})
    assert said == (
        "grpo_beta=0.0 with grpo_config.loss_fn='a/beta.py:beta' and grpo_beta, betas, 'delta' and grpo_config.delta: "
        "set grpo_beta."
    )
    assert in_yaml_words("Something else.", ExtendedGRPOConfig, {}) == "grpo_config: Something else."

"""What stands in a YAML file or on the command line of `--stage grpo`. Line A only."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.target import Target
from tests.fuzz.values import TEXTS, TREES

Values = dict[str, Any]
FLAGS = (
    "--stage",
    "grpo",
    "--grpo_beta=0.1",
    "--grpo-group-size",
    "8",
    "--",
    "--=",
    "-",
    "--reward_",
    "x y",
    "--no_bf16",
)


@cache
def own_keys() -> tuple[str, ...]:
    """Every key that this package adds to LLaMA-Factory's."""
    from llamafactory_plugin.arguments import GRPOArguments

    return tuple(item.name for item in dataclasses.fields(GRPOArguments))


@cache
def extended() -> type:
    """LLaMA-Factory's `FinetuningArguments` with our keys."""
    from llamafactory.hparams import FinetuningArguments

    from llamafactory_plugin.arguments import GRPOArguments

    return FinetuningArguments if issubclass(FinetuningArguments, GRPOArguments) else _mixed(FinetuningArguments)


def _mixed(base: type) -> type:
    from llamafactory_plugin.arguments import extend

    return extend(base)


def yaml_keys(values: Values) -> None:
    """Any value behind any key of ours."""
    arguments = extended()(stage="grpo", **values)
    assert arguments.grpo_group_size >= 2


def grpo_config(mapping: Values) -> None:
    """Any value behind any option of GRPOConfig."""
    from llamafactory_plugin.config_mapping import config_mapping
    from trl_grpo_ext import ExtendedGRPOConfig

    assert set(config_mapping(mapping, ExtendedGRPOConfig, {"learning_rate"})) == set(mapping)


def reward_mappings(mapping: Values) -> None:
    """Any composition, and any collapse guard."""
    from llamafactory_plugin.reward_mappings import composed_reward, guarded_reward
    from trl_grpo_ext.rewards import exact_match

    def resolve(name: Any) -> Any:
        return exact_match

    if "truth" in mapping:
        guarded_reward(mapping, [exact_match], resolve)
    else:
        composed_reward(mapping, {}, resolve, 4)


def flags(tokens: list[str]) -> None:
    """Any command line."""
    from llamafactory_plugin.raw_arguments import explicit_arguments, refuse_own_names, refuse_unknown_names

    known = frozenset([*own_keys(), "stage", "bf16"])
    explicit = explicit_arguments(tokens, known)
    assert all(isinstance(name, str) for name in explicit)
    refuse_unknown_names(explicit, known)
    refuse_own_names(explicit, "sft")


def _options() -> tuple[str, ...]:
    from trl_grpo_ext import ExtendedGRPOConfig

    return tuple(item.name for item in dataclasses.fields(ExtendedGRPOConfig))


def targets() -> list[Target]:
    """The targets of this file."""
    from llamafactory_plugin.errors import UsageError

    few = {"max_size": 3}
    composition = st.fixed_dictionaries(
        {},
        optional={
            "rewards": st.one_of(
                TREES, st.lists(st.fixed_dictionaries({"reward": TEXTS, "weight": TREES}), max_size=2)
            ),
            "name": TREES,
            "normalize": TREES,
            "gate": TREES,
        },
    )
    guard = st.fixed_dictionaries(
        {"truth": TREES},
        optional=dict.fromkeys(("window", "policy", "patience", "min_rise", "canary_dataset", "fallback"), TREES),
    )
    return [
        Target(
            "YAML keys",
            st.dictionaries(st.sampled_from(own_keys()), TREES, min_size=1, **few),
            yaml_keys,
            (UsageError,),
        ),
        Target(
            "grpo_config",
            st.dictionaries(st.one_of(st.sampled_from(_options()), TEXTS), TREES, **few),
            grpo_config,
            (UsageError,),
        ),
        Target("reward mappings", st.one_of(composition, guard), reward_mappings, (UsageError,)),
        Target("flags", st.lists(st.one_of(st.sampled_from(FLAGS), TEXTS), max_size=6), flags, (UsageError,)),
    ]

"""`grpo_config`: further options of ExtendedGRPOConfig and of TRL's GRPOConfig, checked against the installed version."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from llamafactory_plugin.checks import check_choice, check_number
from llamafactory_plugin.errors import UsageError, nearest
from llamafactory_plugin.functions import importable
from trl_grpo_ext import import_trl

NATIVE_NAMES = {
    "grpo_group_size": "num_generations",
    "grpo_beta": "beta",
    "grpo_clip_range": "epsilon",
    "grpo_clip_range_high": "epsilon_high",
    "grpo_scale_rewards": "scale_rewards",
    "grpo_loss_type": "loss_type",
    "grpo_num_iterations": "num_iterations",
    "grpo_max_completion_length": "max_completion_length",
    "grpo_use_vllm": "use_vllm",
    "grpo_eval_temperature": "eval_temperature",
}
# Fields of GRPOConfig that have a key of their own; `grpo_config` refuses them, so that each is said in one place.
OWN_KEYS = {trl_name: name for name, trl_name in NATIVE_NAMES.items()} | {
    "temperature": "grpo_temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
    "reward_weights": "reward_weights",
    "max_prompt_length": "cutoff_len",
    "shuffle_dataset": "disable_shuffling",
    "model_init_kwargs": "LLaMA-Factory's model arguments",
    "remove_unused_columns": "grpo_extra_columns",
}
CONFIG_CHOICES = {
    "importance_sampling_level": ("token", "sequence", "sequence_token", "geometric"),
    "vllm_mode": ("server", "colocate"),
    "vllm_model_impl": ("vllm", "transformers"),
}
WHOLE_NUMBERS = (int, int | None)
# Options whose value may name a function, of a file beside the YAML file too.
FUNCTIONS = ("loss_fn", "group_filter")
# Shares: at most 1. Every other number of `grpo_config` has no upper bound.
CONFIG_SHARES = frozenset(["min_p", "top_entropy_quantile", "ref_model_mixup_alpha", "vllm_gpu_memory_utilization"])


def config_mapping(
    mapping: Mapping[str, Any], config_class: type, shared: set[str], folders: Sequence[Path] = ()
) -> dict[str, Any]:
    """`grpo_config`, checked against the fields of `config_class`; files of functions are looked up in `folders`.

    Raises:
        UsageError: for an unknown key, a key that is set elsewhere, a value of the wrong type, a missing file.
    """
    names = {item.name for item in dataclasses.fields(config_class) if item.init}
    hints = get_type_hints(config_class)
    for name, value in mapping.items():
        if name == "disable_dropout":
            raise UsageError("grpo_config.disable_dropout: dropout is always off in stage grpo; remove it.")
        if name in OWN_KEYS or name in shared:
            raise UsageError(f"grpo_config.{name}: set {OWN_KEYS.get(name, name)} beside grpo_config instead.")
        if name not in names:
            raise UsageError(f"grpo_config.{name}: not a field of ExtendedGRPOConfig{nearest(name, names - shared)}")
        if name in CONFIG_CHOICES:
            check_choice(f"grpo_config.{name}", value, CONFIG_CHOICES[name])
        _check_type(name, value, hints[name])
        if name not in own_fields(config_class):
            _check_config_number(name, value, hints[name])
    files = {name: mapping[name] for name in FUNCTIONS if mapping.get(name)}
    return dict(mapping) | {name: importable(f"grpo_config.{name}", spec, folders) for name, spec in files.items()}


def own_fields(config_class: type) -> set[str]:
    """The options of this package, whose ranges `ExtendedGRPOConfig` checks itself."""
    theirs = {item.name for item in dataclasses.fields(import_trl().GRPOConfig)}
    return {item.name for item in dataclasses.fields(config_class)} - theirs


def in_yaml_words(sentence: str, config_class: type, written: Iterable[str]) -> str:
    """A sentence about fields of the config, with the keys of the YAML file for them.

    Args:
        sentence: an error of the config.
        config_class: its class, whose own fields are keys of `grpo_config`.
        written: further fields that are.
    """
    keys = {name: f"grpo_config.{name}" for name in own_fields(config_class) | set(written)} | OWN_KEYS
    # Not inside another word, a path or a quoted value.
    pattern = re.compile(rf"(?<![\w.:/'\"])({'|'.join(sorted(keys, key=len, reverse=True))})(?![\w/]|\.\w)")
    said = pattern.sub(lambda match: keys[match[1]], sentence)
    return said if any(key in said for key in keys.values()) else f"grpo_config: {said}"


def _check_type(name: str, value: Any, hint: Any) -> None:
    if list[float] in (get_args(hint) or (hint,)):
        _check_numbers(name, value)
        return
    accepted = [option for option in get_args(hint) or (hint,) if isinstance(option, type)]
    if float in accepted:
        accepted.append(int)
    if len(accepted) != len(get_args(hint) or (hint,)) + (float in accepted):
        return
    if not isinstance(value, tuple(accepted)) or (isinstance(value, bool) and bool not in accepted):
        wanted = " or ".join(kind.__name__ for kind in accepted if kind is not type(None))
        raise UsageError(f"grpo_config.{name} must be {wanted}, not {value!r}.")


def _check_numbers(name: str, value: Any) -> None:
    for number in value if isinstance(value, list) else [value]:
        if not isinstance(value, list) or isinstance(number, bool) or not isinstance(number, (int, float)):
            raise UsageError(f"grpo_config.{name} must be a list of numbers, as in [0.25, 0.75], not {value!r}.")


def _check_config_number(name: str, value: Any, hint: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    kind, most = (int, math.inf) if hint in WHOLE_NUMBERS else (float, 1.0 if name in CONFIG_SHARES else math.inf)
    check_number(f"grpo_config.{name}", value, kind, int(kind is int), most)

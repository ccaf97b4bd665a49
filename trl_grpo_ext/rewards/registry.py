"""Reward functions by name, by file, or as they are."""

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trl_grpo_ext._suggest import did_you_mean
from trl_grpo_ext.rewards.builtin import exact_match, gsm8k_number, preference_overlap
from trl_grpo_ext.rewards.code import code_tests_reward, python_compiles_reward
from trl_grpo_ext.rewards.formatting import tag_format
from trl_grpo_ext.rewards.games import countdown, game_of_24
from trl_grpo_ext.rewards.label_free import SelfConsistencyReward, StepValidityReward, label_free_reward
from trl_grpo_ext.rewards.language import language_consistency
from trl_grpo_ext.rewards.lengths import repetition_penalty
from trl_grpo_ext.rewards.loading import load_reward
from trl_grpo_ext.rewards.matching import multiple_choice, normalised_match, numeric_match
from trl_grpo_ext.rewards.math_answers import MathEqual, math_equal
from trl_grpo_ext.rewards.overlap import rouge_l
from trl_grpo_ext.rewards.reasoning_tasks import reasoning_gym_reward
from trl_grpo_ext.rewards.structured import json_schema
from trl_grpo_ext.rewards.symbolic import math_verified

RewardFunction = Callable[..., Any]
RewardSpec = str | RewardFunction

_BUILT_IN: tuple[RewardFunction, ...] = (
    countdown,
    exact_match,
    game_of_24,
    gsm8k_number,
    json_schema,
    language_consistency,
    math_equal,
    MathEqual(strict=True, name="math_equal_strict"),
    multiple_choice,
    normalised_match,
    numeric_match,
    preference_overlap,
    repetition_penalty,
    rouge_l,
    tag_format,
)
REWARDS: Mapping[str, RewardFunction] = MappingProxyType({reward.__name__: reward for reward in _BUILT_IN})


def _label_free_composite() -> RewardFunction:
    return label_free_reward(name="label_free_composite")


# These keep a window over the calls of one run, or workers: every run gets its own.
STATEFUL: Mapping[str, Callable[[], RewardFunction]] = MappingProxyType(
    {
        "code_tests": code_tests_reward,
        "label_free": label_free_reward,
        # `trl_grpo_ext.rewards.label_free` is a package: this is its reward's name as an attribute.
        "label_free_composite": _label_free_composite,
        "math_verified": math_verified,
        "python_compiles": python_compiles_reward,
        "reasoning_gym": reasoning_gym_reward,
        "self_consistency": SelfConsistencyReward,
        "step_validity": StepValidityReward,
    }
)

# Distributions name their rewards here: [project.entry-points."trl_grpo_ext.rewards"] my_reward = "package.module:f".
GROUP = "trl_grpo_ext.rewards"


def third_party_rewards() -> dict[str, EntryPoint]:
    """The rewards that installed distributions name; nothing of them is imported. A built-in keeps its name."""
    return {
        entry.name: entry
        for entry in entry_points(group=GROUP)
        if entry.name not in REWARDS and entry.name not in STATEFUL
    }


def _load_third_party(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except Exception as error:
        distribution = entry.dist.name if entry.dist is not None else "an unnamed distribution"
        raise ValueError(
            f"Reward {entry.name!r} of the distribution {distribution!r} ({entry.value}) fails to load with "
            f"{type(error).__name__}: {error}; update or uninstall {distribution}, or name another reward."
        ) from error


def _check_is_reward(spec: RewardSpec, reward: Any) -> None:
    if not callable(reward) or isinstance(reward, type):
        kind = "class" if isinstance(reward, type) else type(reward).__name__
        raise ValueError(
            f"Reward {spec!r} is a {kind}, not a function; name a function f(completions, **kwargs) -> list[float]."
        )
    if not isinstance(getattr(reward, "__name__", None), str):
        raise ValueError(
            f"Reward {spec!r} has no __name__, under which TRL logs it; set one, as in: my_reward.__name__ = 'my_reward'."
        )


def is_file_spec(spec: Any) -> bool:
    """Whether a reward is named as `path/to/file.py:function`; a built-in's name comes first."""
    return (
        isinstance(spec, str)
        and spec not in REWARDS
        and spec not in STATEFUL
        and (":" in spec or spec.endswith(".py"))
    )


def resolve_reward(spec: RewardSpec, search_directories: Iterable[str | Path] = ()) -> RewardFunction:
    """Turn one name, file or callable into a reward function; arguments and errors of `resolve_reward_funcs`."""
    if not isinstance(spec, str):
        reward: Any = spec
    elif spec in REWARDS:
        reward = REWARDS[spec]
    elif spec in STATEFUL:
        reward = STATEFUL[spec]()
    elif is_file_spec(spec):
        reward = load_reward(spec, search_directories)
    elif spec in (third_party := third_party_rewards()):
        reward = _load_third_party(third_party[spec])
    else:
        known = [*REWARDS, *STATEFUL, *third_party]
        raise ValueError(
            f"Unknown reward {spec!r}{did_you_mean(spec, known) or '.'} Known rewards: "
            f"{', '.join(sorted(known))}; your own: 'path/to/file.py:function'."
        )
    _check_is_reward(spec, reward)
    return reward


def check_distinct_names(rewards: list[RewardFunction]) -> None:
    """Refuse two reward functions of one name.

    Raises:
        ValueError: naming it.
    """
    names = [reward.__name__ for reward in rewards]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"Two reward functions have the name {repeated[0]!r}, under which TRL logs their metrics; rename one of "
            "them, or remove the repetition (use a reward weight to count it more)."
        )


def resolve_reward_funcs(
    specs: RewardSpec | Iterable[RewardSpec], search_directories: str | Path | Iterable[str | Path] = ()
) -> list[RewardFunction]:
    """Turn names, files and callables into reward functions for `GRPOTrainer(reward_funcs=...)`.

    Args:
        specs: one or several of: the name of a built-in (`REWARDS`, and those of `STATEFUL`, which are made anew for
            every call of this function), the name of a reward of another distribution (entry-point group
            `trl_grpo_ext.rewards`), `path/to/file.py:function`, a callable. A
            relative path is looked up in each of `search_directories` in turn, then in the working directory. A file
            is imported once per process, under a module name of its own, without its folder on `sys.path`.
        search_directories: the folder or folders for relative paths; none by default.

    Returns:
        The functions, in the order given.

    Raises:
        ValueError: an unknown name, a missing or failing file, a missing function, an object that is not a reward
            function, or two functions of the same name. Each message gives the way out.
    """
    requested = [specs] if isinstance(specs, str) or callable(specs) else list(specs)
    folders = [search_directories] if isinstance(search_directories, (str, Path)) else list(search_directories)
    rewards = [resolve_reward(spec, folders) for spec in requested]
    check_distinct_names(rewards)
    return rewards

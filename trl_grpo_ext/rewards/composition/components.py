"""The parts of a composite reward: its components, how they are called, and gates between them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from trl_grpo_ext._suggest import did_you_mean
from trl_grpo_ext.rewards.adapters.calls import as_list, as_reward, call_once, callable_name
from trl_grpo_ext.rewards.composition.groups import Score

Reward = Callable[..., Any]
Missing = str | float


@dataclass(frozen=True)
class Gate:
    """`component` must reach `minimum` for the components in `opens` to count.

    Where it does not, or is None, each of those scores `otherwise` before normalisation, whatever it returned.

    Args:
        component: the name of the component that decides, by its own score before normalisation.
        opens: the names of the components it gates.
        minimum: the least score that opens the gate; 1.0 by default.
        otherwise: the score of a gated component behind the closed gate; 0.0 by default.
    """

    component: str
    opens: tuple[str, ...]
    minimum: float = 1.0
    otherwise: float = 0.0


def _as_score(value: Any, component: str, row: int) -> Score:
    if isinstance(value, float) and math.isnan(value):
        return None
    score = as_reward(value)
    if isinstance(score, Exception):
        raise type(score)(
            f"Reward {component!r} must return finite numbers, or None, but for row {row} {score}."
        ) from None
    return score


def call_component(reward: Reward, component: str, rows: int, kwargs: Mapping[str, Any]) -> list[Score]:
    """Call one component, sync or async, and return its scores, NaN as None.

    Raises:
        ValueError: not a list, a wrong number of values, or an infinite one.
        TypeError: a value that is neither a number nor None.
        Exception: what the component raises.
    """
    result = call_once(reward, **kwargs)
    if isinstance(result, Exception):
        raise result
    values = as_list(component, result, rows)
    return [_as_score(value, component, row) for row, value in enumerate(values)]


def mean_score(scores: Sequence[Score]) -> float:
    """Mean of the scores that are not None; NaN when there is none."""
    known = [score for score in scores if score is not None]
    return fmean(known) if known else math.nan


def per_component(name: str, value: Any, default: Any, components: Sequence[str]) -> dict[str, Any]:
    """Spread one value over the components, or complete a mapping by the default.

    Raises:
        ValueError: the mapping names something that is not a component.
    """
    if not isinstance(value, Mapping):
        return dict.fromkeys(components, value)
    for key in value:
        if key not in components:
            raise ValueError(
                f"{name}: {key!r} is not a component{did_you_mean(key, components) or '.'} "
                f"Components: {', '.join(components)}."
            )
    return {component: value.get(component, default) for component in components}


def named_rewards(rewards: Mapping[str, Reward] | Sequence[Reward]) -> dict[str, Reward]:
    """Return the rewards by name.

    Raises:
        ValueError: no reward, or two of one name.
    """
    named = dict(rewards if isinstance(rewards, Mapping) else ((callable_name(reward), reward) for reward in rewards))
    if not named or len(named) != len(rewards):
        raise ValueError(
            f"rewards must be at least one reward, each with a name of its own, not {list(named)} for {len(rewards)} "
            "rewards; give a mapping {name: reward}."
        )
    return named


def metric_sources(reward: Any) -> list[Any]:
    """Return the reward's parts at any depth, what it wraps, and itself: those of them that keep `last_metrics`."""
    inner = [*getattr(reward, "parts", ()), *([reward.__wrapped__] if hasattr(reward, "__wrapped__") else [])]
    found = [source for part in inner for source in metric_sources(part)]
    return [*found, reward] if hasattr(reward, "last_metrics") else found


def collect_metrics(reward: Any) -> dict[str, float]:
    """Return the figures of the last call of a reward and of its `metric_sources`."""
    metrics: dict[str, float] = {}
    for source in metric_sources(reward):
        metrics |= source.last_metrics
    return metrics

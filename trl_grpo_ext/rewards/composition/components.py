"""The parts of a composite reward: its components, how they are called, and gates between them."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from trl_grpo_ext._suggest import did_you_mean
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
    if value is None:
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"Reward {component!r} must return a number or None per row, but returned {value!r} for row {row}."
        ) from None
    if math.isinf(score):
        raise ValueError(f"Reward {component!r} must return finite numbers, but returned {score} for row {row}.")
    return None if math.isnan(score) else score


def call_component(reward: Reward, component: str, rows: int, kwargs: Mapping[str, Any]) -> list[Score]:
    """Call one component and return its scores, NaN as None.

    Raises:
        ValueError: a wrong number of values, or an infinite one.
        TypeError: a value that is neither a number nor None.
    """
    values = list(reward(**kwargs))
    if len(values) != rows:
        raise ValueError(
            f"Reward {component!r} must return one value per completion ({rows}), but returned {len(values)}."
        )
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
        TypeError: an async reward.
    """
    if isinstance(rewards, Mapping):
        named = dict(rewards)
    else:
        named = {getattr(reward, "__name__", type(reward).__name__): reward for reward in rewards}
    if not named or len(named) != len(rewards):
        raise ValueError(
            f"rewards must be at least one reward, each with a name of its own, not {list(named)} for {len(rewards)} "
            "rewards; give a mapping {name: reward}."
        )
    for name, reward in named.items():
        if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__):
            raise TypeError(f"Reward {name!r} is async, which a composite can't await; wrap it in a plain function.")
    return named


def collect_metrics(reward: Any) -> dict[str, float]:
    """Return `last_metrics` of a reward and of its `parts`, at any depth: the figures of its last call."""
    metrics: dict[str, float] = {}
    for part in getattr(reward, "parts", ()):
        metrics |= collect_metrics(part)
    return metrics | getattr(reward, "last_metrics", {})

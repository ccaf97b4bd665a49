"""Several rewards as one callable: weights, schedules, gates, normalisation.

Standard library only, but for `RewardMetricsCallback`, which imports transformers when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from trl_grpo_ext.rewards.composition.components import Gate
from trl_grpo_ext.rewards.composition.composite import CompositeReward
from trl_grpo_ext.rewards.composition.config import compose
from trl_grpo_ext.rewards.composition.groups import find_groups, normalise, rank, standardise
from trl_grpo_ext.rewards.composition.schedules import Constant, Cosine, Linear, Step, make_schedule

if TYPE_CHECKING:
    from trl_grpo_ext.rewards.composition.callback import RewardMetricsCallback

__all__ = [
    "CompositeReward",
    "Constant",
    "Cosine",
    "Gate",
    "Linear",
    "RewardMetricsCallback",
    "Step",
    "compose",
    "find_groups",
    "make_schedule",
    "normalise",
    "rank",
    "standardise",
]


def __getattr__(name: str) -> Any:
    if name == "RewardMetricsCallback":
        from trl_grpo_ext.rewards.composition.callback import RewardMetricsCallback

        return RewardMetricsCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

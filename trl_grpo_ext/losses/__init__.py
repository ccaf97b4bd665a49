"""The clipped group-relative policy loss as pure functions of tensors; torch and the standard library only."""

from trl_grpo_ext.losses.aggregation import aggregate, dapo_num_items
from trl_grpo_ext.losses.config import LossConfig
from trl_grpo_ext.losses.inputs import LossInputs, LossOutputs
from trl_grpo_ext.losses.metrics import ratio_metrics
from trl_grpo_ext.losses.policy import policy_loss
from trl_grpo_ext.losses.ratios import effective_sample_size
from trl_grpo_ext.losses.schedules import ClipSchedule

__all__ = [
    "ClipSchedule",
    "LossConfig",
    "LossInputs",
    "LossOutputs",
    "aggregate",
    "dapo_num_items",
    "effective_sample_size",
    "policy_loss",
    "ratio_metrics",
]

"""Less work for the same gradients: trimmed micro-batches, prompts encoded once, log-probabilities in chunks."""

from trl_grpo_ext.batching.callback import PutAttentionBack
from trl_grpo_ext.batching.generation import SharedPrefill
from trl_grpo_ext.batching.micro_batches import without_zero_advantages
from trl_grpo_ext.batching.passes import LogProbPasses
from trl_grpo_ext.batching.plan import BatchingPlan, Circumstances, batching_plan
from trl_grpo_ext.batching.regrouping import regrouped
from trl_grpo_ext.batching.support import dropout_reason, sharded_reason
from trl_grpo_ext.batching.trimming import trimmed

__all__ = [
    "BatchingPlan",
    "Circumstances",
    "LogProbPasses",
    "PutAttentionBack",
    "SharedPrefill",
    "batching_plan",
    "dropout_reason",
    "regrouped",
    "sharded_reason",
    "trimmed",
    "without_zero_advantages",
]

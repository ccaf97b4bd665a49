"""Less work for the same gradients: trimmed micro-batches, prompts encoded once, log-probabilities in chunks."""

from trl_grpo_ext.batching.micro_batches import without_zero_advantages
from trl_grpo_ext.batching.passes import LogProbPasses
from trl_grpo_ext.batching.regrouping import regrouped
from trl_grpo_ext.batching.trimming import trimmed

__all__ = ["LogProbPasses", "regrouped", "trimmed", "without_zero_advantages"]

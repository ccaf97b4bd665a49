"""Rewards that need no label, and the guard that notices when they stop meaning anything.

Standard library only, but for `CollapseGuardCallback`, which imports transformers when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from trl_grpo_ext.rewards.label_free.answers import equivalence_classes, extract_answer, is_refusal
from trl_grpo_ext.rewards.label_free.arithmetic import check_steps
from trl_grpo_ext.rewards.label_free.bm25 import BM25
from trl_grpo_ext.rewards.label_free.collapse import CollapseDetector
from trl_grpo_ext.rewards.label_free.composite import label_free_reward
from trl_grpo_ext.rewards.label_free.grounding import FactualGroundingReward
from trl_grpo_ext.rewards.label_free.guard import CollapseGuard
from trl_grpo_ext.rewards.label_free.lexical_judge import lexical_verdict
from trl_grpo_ext.rewards.label_free.ranking import PairwiseRanking, RankedReward
from trl_grpo_ext.rewards.label_free.self_consistency import SelfConsistencyReward
from trl_grpo_ext.rewards.label_free.step_validity import StepValidityReward

if TYPE_CHECKING:
    from trl_grpo_ext.rewards.label_free.callback import CollapseGuardCallback

__all__ = [
    "BM25",
    "CollapseDetector",
    "CollapseGuard",
    "CollapseGuardCallback",
    "FactualGroundingReward",
    "PairwiseRanking",
    "RankedReward",
    "SelfConsistencyReward",
    "StepValidityReward",
    "check_steps",
    "equivalence_classes",
    "extract_answer",
    "is_refusal",
    "label_free_reward",
    "lexical_verdict",
]


def __getattr__(name: str) -> Any:
    if name == "CollapseGuardCallback":
        from trl_grpo_ext.rewards.label_free.callback import CollapseGuardCallback

        return CollapseGuardCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Evaluation by what is not the reward: pass@k, pass^k, avg@k, maj@k with intervals, and two runs compared.

Importing this package imports neither torch nor TRL: what needs them is loaded when it is first used (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trl_grpo_ext.evaluation.estimators import majority_at_k, pass_at_k, pass_hat_k
from trl_grpo_ext.evaluation.intervals import Difference, Estimate, mean_interval, paired_difference
from trl_grpo_ext.evaluation.results import OWN_COLUMNS, Evaluation, compare, evaluate, score_rows, stored_scores
from trl_grpo_ext.evaluation.samples import SampleLog, SamplesError, problem_key, read_rows, rows_of_step
from trl_grpo_ext.evaluation.scorers import SCORERS, AnswerMatch, flexible_match, strict_match
from trl_grpo_ext.evaluation.tables import differences_table, estimates_table, two_by_two

if TYPE_CHECKING:
    from trl_grpo_ext.evaluation.callback import EvaluationCallback
    from trl_grpo_ext.evaluation.generation import Sampling
    from trl_grpo_ext.evaluation.model_folder import ModelFolder

_HOME = {
    "EvaluationCallback": "trl_grpo_ext.evaluation.callback",
    "ModelFolder": "trl_grpo_ext.evaluation.model_folder",
    "Sampling": "trl_grpo_ext.evaluation.generation",
}

__all__ = [
    "OWN_COLUMNS",
    "SCORERS",
    "AnswerMatch",
    "Difference",
    "Estimate",
    "Evaluation",
    "EvaluationCallback",
    "ModelFolder",
    "SampleLog",
    "SamplesError",
    "Sampling",
    "compare",
    "differences_table",
    "estimates_table",
    "evaluate",
    "flexible_match",
    "majority_at_k",
    "mean_interval",
    "paired_difference",
    "pass_at_k",
    "pass_hat_k",
    "problem_key",
    "read_rows",
    "rows_of_step",
    "score_rows",
    "stored_scores",
    "strict_match",
    "two_by_two",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__

"""Training-Free GRPO (arXiv 2510.08191): lessons learned from groups of rollouts, without a gradient.

    learner = TrainingFreeGRPO(backend, {"batch_size": 20}, output_dir="lessons")
    lessons = learner.train(rows, "gsm8k_number")
    learner.infer("What is 17 * 3?")

Importing this package imports neither torch nor TRL: backends that need more are loaded when they are first used.
"""

from trl_grpo_ext.training_free.budget import Budget, BudgetReached, Price, Spending
from trl_grpo_ext.training_free.config import TrainingFreeConfig
from trl_grpo_ext.training_free.evaluation import Evaluation
from trl_grpo_ext.training_free.gate import AcceptanceGate, Decision, GateConfig
from trl_grpo_ext.training_free.learner import TrainingFreeGRPO
from trl_grpo_ext.training_free.parsing import ParseError
from trl_grpo_ext.training_free.prompts import system_prompt
from trl_grpo_ext.training_free.protocol import Backend, BackendError, ChatReply, ChatRequest
from trl_grpo_ext.training_free.report import Progress, Report
from trl_grpo_ext.training_free.state import RunBusyError, RunChangedError
from trl_grpo_ext.training_free.usefulness import Inclusion, Usefulness, lesson_usefulness

__all__ = [
    "AcceptanceGate",
    "Backend",
    "BackendError",
    "Budget",
    "BudgetReached",
    "ChatReply",
    "ChatRequest",
    "Decision",
    "Evaluation",
    "GateConfig",
    "Inclusion",
    "ParseError",
    "Price",
    "Progress",
    "Report",
    "RunBusyError",
    "RunChangedError",
    "Spending",
    "TrainingFreeConfig",
    "TrainingFreeGRPO",
    "Usefulness",
    "lesson_usefulness",
    "system_prompt",
]

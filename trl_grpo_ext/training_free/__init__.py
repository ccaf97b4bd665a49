"""Training-Free GRPO (arXiv 2510.08191): lessons learned from groups of rollouts, without a gradient.

    learner = TrainingFreeGRPO(backend, {"batch_size": 20}, output_dir="lessons")
    lessons = learner.train(rows, "gsm8k_number")
    learner.infer("What is 17 * 3?")

Importing this package imports neither torch nor TRL: backends that need more are loaded when they are first used.
"""

from trl_grpo_ext.training_free.budget import Budget, BudgetReached, Price, Spending
from trl_grpo_ext.training_free.config import TrainingFreeConfig
from trl_grpo_ext.training_free.data_settings import json_rows, read_json_rows
from trl_grpo_ext.training_free.evaluation import Evaluation
from trl_grpo_ext.training_free.gate import AcceptanceGate, Decision, GateConfig
from trl_grpo_ext.training_free.inference import answers, read_lessons
from trl_grpo_ext.training_free.learner import TrainingFreeGRPO
from trl_grpo_ext.training_free.live import shown_progress
from trl_grpo_ext.training_free.model_settings import ModelSettings, model_settings
from trl_grpo_ext.training_free.parsing import ParseError
from trl_grpo_ext.training_free.preparation import check_reward, training_problems
from trl_grpo_ext.training_free.problems import PROMPT_COLUMNS
from trl_grpo_ext.training_free.prompts import system_prompt
from trl_grpo_ext.training_free.protocol import Backend, BackendError, ChatReply, ChatRequest
from trl_grpo_ext.training_free.report import Progress, Report
from trl_grpo_ext.training_free.run_settings import PreparedRun, RunSettings, config_of
from trl_grpo_ext.training_free.settings_file import overridden, read_mapping, read_run_settings
from trl_grpo_ext.training_free.state import RunBusyError, RunChangedError
from trl_grpo_ext.training_free.usefulness import Inclusion, Usefulness, lesson_usefulness

__all__ = [
    "PROMPT_COLUMNS",
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
    "ModelSettings",
    "ParseError",
    "PreparedRun",
    "Price",
    "Progress",
    "Report",
    "RunBusyError",
    "RunChangedError",
    "RunSettings",
    "Spending",
    "TrainingFreeConfig",
    "TrainingFreeGRPO",
    "Usefulness",
    "answers",
    "check_reward",
    "config_of",
    "json_rows",
    "lesson_usefulness",
    "model_settings",
    "overridden",
    "read_json_rows",
    "read_lessons",
    "read_mapping",
    "read_run_settings",
    "shown_progress",
    "system_prompt",
    "training_problems",
]

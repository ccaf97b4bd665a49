"""Reward functions for TRL's GRPOTrainer. Importing this package imports neither torch nor TRL.

Every name of the registry is an attribute too, for `trl grpo --reward_funcs trl_grpo_ext.rewards.<name>`. Those that
keep state over a run (`STATEFUL` in `registry`) are made anew each time the attribute is read. `label_free` is a
package of its own; its reward is `trl_grpo_ext.rewards.label_free_composite`.
"""

from typing import Any

from trl_grpo_ext.rewards.adapters import (
    ClassifierReward,
    HTTPReward,
    JudgeRanking,
    JudgeReward,
    OpenRLHFEndpoint,
    OpenRLHFReward,
    RewardAdapter,
    RubricReward,
    ScalarReward,
    Service,
    ServiceError,
    SwiftReward,
    TRLReward,
    VerlReward,
)
from trl_grpo_ext.rewards.builtin import exact_match, gsm8k_number, preference_overlap
from trl_grpo_ext.rewards.code import code_tests_reward, python_compiles_reward
from trl_grpo_ext.rewards.columns import check_reward_columns
from trl_grpo_ext.rewards.control import apply_reward_control
from trl_grpo_ext.rewards.errors import RewardError
from trl_grpo_ext.rewards.formatting import TagFormat, tag_format
from trl_grpo_ext.rewards.games import countdown, game_of_24
from trl_grpo_ext.rewards.isolation import RewardIsolation, isolate_reward_funcs
from trl_grpo_ext.rewards.language import LanguageConsistency, language_consistency
from trl_grpo_ext.rewards.lengths import CosineLength, RepetitionPenalty, SoftOverlong, repetition_penalty
from trl_grpo_ext.rewards.matching import (
    MultipleChoice,
    NumericMatch,
    multiple_choice,
    normalised_match,
    numeric_match,
)
from trl_grpo_ext.rewards.math_answers import MathEqual, final_answer, math_equal, symbolic_equal
from trl_grpo_ext.rewards.math_values import fast_equal
from trl_grpo_ext.rewards.overlap import RougeL, rouge_l
from trl_grpo_ext.rewards.probe_reports import ProbeReport, probe_table, total_report
from trl_grpo_ext.rewards.probes import ProbeError, probe_reward
from trl_grpo_ext.rewards.reasoning_tasks import reasoning_gym_reward, reasoning_gym_rows
from trl_grpo_ext.rewards.registry import REWARDS, STATEFUL, resolve_reward_funcs
from trl_grpo_ext.rewards.runtime import (
    Capabilities,
    IsolatedReward,
    RewardLoadError,
    RewardRuntime,
    SandboxUnavailable,
    default_runtime,
    sandbox_capabilities,
)
from trl_grpo_ext.rewards.structured import JsonSchema, json_schema

__all__ = [
    "REWARDS",
    "STATEFUL",
    "Capabilities",
    "ClassifierReward",
    "CosineLength",
    "HTTPReward",
    "IsolatedReward",
    "JsonSchema",
    "JudgeRanking",
    "JudgeReward",
    "LanguageConsistency",
    "MathEqual",
    "MultipleChoice",
    "NumericMatch",
    "OpenRLHFEndpoint",
    "OpenRLHFReward",
    "ProbeError",
    "ProbeReport",
    "RepetitionPenalty",
    "RewardAdapter",
    "RewardError",
    "RewardIsolation",
    "RewardLoadError",
    "RewardRuntime",
    "RougeL",
    "RubricReward",
    "SandboxUnavailable",
    "ScalarReward",
    "Service",
    "ServiceError",
    "SoftOverlong",
    "SwiftReward",
    "TRLReward",
    "TagFormat",
    "VerlReward",
    "apply_reward_control",
    "check_reward_columns",
    "code_tests_reward",
    "countdown",
    "default_runtime",
    "exact_match",
    "fast_equal",
    "final_answer",
    "game_of_24",
    "gsm8k_number",
    "isolate_reward_funcs",
    "json_schema",
    "language_consistency",
    "math_equal",
    "multiple_choice",
    "normalised_match",
    "numeric_match",
    "preference_overlap",
    "probe_reward",
    "probe_table",
    "python_compiles_reward",
    "reasoning_gym_reward",
    "reasoning_gym_rows",
    "repetition_penalty",
    "resolve_reward_funcs",
    "rouge_l",
    "sandbox_capabilities",
    "symbolic_equal",
    "tag_format",
    "total_report",
]


def __getattr__(name: str) -> Any:
    if name in REWARDS:
        return REWARDS[name]
    if name in STATEFUL:
        return STATEFUL[name]()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

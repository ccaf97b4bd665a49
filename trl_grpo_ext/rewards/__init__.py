"""Reward functions for TRL's GRPOTrainer. Importing this package imports neither torch nor TRL."""

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
from trl_grpo_ext.rewards.columns import check_reward_columns
from trl_grpo_ext.rewards.control import apply_reward_control
from trl_grpo_ext.rewards.errors import RewardError
from trl_grpo_ext.rewards.formatting import TagFormat, tag_format
from trl_grpo_ext.rewards.games import countdown, game_of_24
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
from trl_grpo_ext.rewards.probes import ProbeError, ProbeReport, probe_reward, probe_table
from trl_grpo_ext.rewards.registry import REWARDS, resolve_reward_funcs
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
    "countdown",
    "default_runtime",
    "exact_match",
    "fast_equal",
    "final_answer",
    "game_of_24",
    "gsm8k_number",
    "json_schema",
    "language_consistency",
    "math_equal",
    "multiple_choice",
    "normalised_match",
    "numeric_match",
    "preference_overlap",
    "probe_reward",
    "probe_table",
    "repetition_penalty",
    "resolve_reward_funcs",
    "rouge_l",
    "sandbox_capabilities",
    "symbolic_equal",
    "tag_format",
]

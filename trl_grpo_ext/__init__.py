"""Extensions for TRL's GRPOTrainer.

Importing this package imports neither torch nor TRL: every public name is loaded when it is first used (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl_grpo_ext._compat import config_kwargs, grpo_config_fields, import_trl, prepare_model
    from trl_grpo_ext.advantages import AdvantageConfig, group_advantages
    from trl_grpo_ext.callbacks import AdaptiveKLCallback, ClipScheduleCallback
    from trl_grpo_ext.checkpoints import CheckpointCallback
    from trl_grpo_ext.config import ExtendedGRPOConfig
    from trl_grpo_ext.experience import (
        Episode,
        ExperienceCallback,
        ExperienceConfig,
        ExperienceLibrary,
        Lesson,
        RescueCallback,
    )
    from trl_grpo_ext.losses import LossConfig, LossInputs, LossOutputs, policy_loss
    from trl_grpo_ext.presets import preset
    from trl_grpo_ext.rewards import (
        REWARDS,
        apply_reward_control,
        check_reward_columns,
        exact_match,
        gsm8k_number,
        preference_overlap,
        resolve_reward_funcs,
    )
    from trl_grpo_ext.rewards.skips import ExcludeSkipped, correct_skipped_rows, exclude_skipped, total_rewards
    from trl_grpo_ext.self_certainty_reward import SelfCertainty
    from trl_grpo_ext.termination import TerminationCallback
    from trl_grpo_ext.trainer import ExtendedGRPOTrainer

__version__ = "0.1.0"

_ADVANTAGES = "trl_grpo_ext.advantages"
_CALLBACKS = "trl_grpo_ext.callbacks"
_COMPAT = "trl_grpo_ext._compat"
_CONFIG = "trl_grpo_ext.config"
_EXPERIENCE = "trl_grpo_ext.experience"
_LOSSES = "trl_grpo_ext.losses"
_REWARDS = "trl_grpo_ext.rewards"
_SELF_CERTAINTY = "trl_grpo_ext.self_certainty_reward"
_SKIPS = "trl_grpo_ext.rewards.skips"
_TRAINER = "trl_grpo_ext.trainer"
_HOME = {
    "AdaptiveKLCallback": _CALLBACKS,
    "AdvantageConfig": _ADVANTAGES,
    "CheckpointCallback": "trl_grpo_ext.checkpoints",
    "ClipScheduleCallback": _CALLBACKS,
    "Episode": _EXPERIENCE,
    "ExcludeSkipped": _SKIPS,
    "ExperienceCallback": _EXPERIENCE,
    "ExperienceConfig": _EXPERIENCE,
    "ExperienceLibrary": _EXPERIENCE,
    "ExtendedGRPOConfig": _CONFIG,
    "ExtendedGRPOTrainer": _TRAINER,
    "LossConfig": _LOSSES,
    "Lesson": _EXPERIENCE,
    "LossInputs": _LOSSES,
    "LossOutputs": _LOSSES,
    "REWARDS": _REWARDS,
    "RescueCallback": _EXPERIENCE,
    "SelfCertainty": _SELF_CERTAINTY,
    "TerminationCallback": "trl_grpo_ext.termination",
    "apply_reward_control": _REWARDS,
    "check_reward_columns": _REWARDS,
    "config_kwargs": _COMPAT,
    "correct_skipped_rows": _SKIPS,
    "exact_match": _REWARDS,
    "exclude_skipped": _SKIPS,
    "group_advantages": _ADVANTAGES,
    "grpo_config_fields": _COMPAT,
    "gsm8k_number": _REWARDS,
    "import_trl": _COMPAT,
    "policy_loss": _LOSSES,
    "preference_overlap": _REWARDS,
    "prepare_model": _COMPAT,
    "preset": "trl_grpo_ext.presets",
    "resolve_reward_funcs": _REWARDS,
    "total_rewards": _SKIPS,
}

__all__ = [
    "REWARDS",
    "AdaptiveKLCallback",
    "AdvantageConfig",
    "CheckpointCallback",
    "ClipScheduleCallback",
    "Episode",
    "ExcludeSkipped",
    "ExperienceCallback",
    "ExperienceConfig",
    "ExperienceLibrary",
    "ExtendedGRPOConfig",
    "ExtendedGRPOTrainer",
    "Lesson",
    "LossConfig",
    "LossInputs",
    "LossOutputs",
    "RescueCallback",
    "SelfCertainty",
    "TerminationCallback",
    "__version__",
    "apply_reward_control",
    "check_reward_columns",
    "config_kwargs",
    "correct_skipped_rows",
    "exact_match",
    "exclude_skipped",
    "group_advantages",
    "grpo_config_fields",
    "gsm8k_number",
    "import_trl",
    "policy_loss",
    "preference_overlap",
    "prepare_model",
    "preset",
    "resolve_reward_funcs",
    "total_rewards",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__

"""The experience library: episodes and lessons in one SQLite file, drawn by advantage, retrieved by words and use.

    library = ExperienceLibrary("experiences.db")
    library.add_rollout_group([(prompt, response), ...], rewards)
    episode = library.sample_experience()

Importing this package imports neither torch nor TRL: what needs them is loaded when it is first used (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trl_grpo_ext.experience.config import ExperienceConfig
from trl_grpo_ext.experience.distillation import distillation_rows, read_prompts, write_distillation_rows
from trl_grpo_ext.experience.embeddings import SentenceSimilarity
from trl_grpo_ext.experience.errors import (
    ConfigChangedError,
    DiskFullError,
    ExperienceError,
    ForeignFileError,
    LibraryDamagedError,
    LibraryLockedError,
    SnapshotConflictError,
)
from trl_grpo_ext.experience.groups import RolloutGroup, group_advantages
from trl_grpo_ext.experience.history import Difference, VersionInfo
from trl_grpo_ext.experience.injection import inject, prompt_text
from trl_grpo_ext.experience.library import ExperienceLibrary
from trl_grpo_ext.experience.prompting import few_shot_text, lessons_text
from trl_grpo_ext.experience.records import Episode, Lesson
from trl_grpo_ext.experience.reports import Coverage
from trl_grpo_ext.experience.retrieval import Retrieved
from trl_grpo_ext.experience.rows import Stored
from trl_grpo_ext.experience.sampler import AdvantageSampler, gumbel_top_k
from trl_grpo_ext.experience.selection import Selector, TokenCounter
from trl_grpo_ext.experience.stats import ExperienceStats
from trl_grpo_ext.experience.trees import SumTree

if TYPE_CHECKING:
    from trl_grpo_ext.experience.callback import ExperienceCallback
    from trl_grpo_ext.experience.logits import PatternConstraint, SuccessTokenBias
    from trl_grpo_ext.experience.rescue_callback import RescueCallback

_LOGITS = "trl_grpo_ext.experience.logits"
_HOME = {
    "ExperienceCallback": "trl_grpo_ext.experience.callback",
    "PatternConstraint": _LOGITS,
    "RescueCallback": "trl_grpo_ext.experience.rescue_callback",
    "SuccessTokenBias": _LOGITS,
}

__all__ = [
    "AdvantageSampler",
    "ConfigChangedError",
    "Coverage",
    "Difference",
    "DiskFullError",
    "Episode",
    "ExperienceCallback",
    "ExperienceConfig",
    "ExperienceError",
    "ExperienceLibrary",
    "ExperienceStats",
    "ForeignFileError",
    "Lesson",
    "LibraryDamagedError",
    "LibraryLockedError",
    "PatternConstraint",
    "RescueCallback",
    "Retrieved",
    "RolloutGroup",
    "Selector",
    "SentenceSimilarity",
    "SnapshotConflictError",
    "Stored",
    "SuccessTokenBias",
    "SumTree",
    "TokenCounter",
    "VersionInfo",
    "distillation_rows",
    "few_shot_text",
    "group_advantages",
    "gumbel_top_k",
    "inject",
    "lessons_text",
    "prompt_text",
    "read_prompts",
    "write_distillation_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__

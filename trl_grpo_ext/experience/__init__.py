"""The experience library: episodes and lessons in one SQLite file, drawn by advantage, retrieved by words and use.

    library = ExperienceLibrary("experiences.db")
    library.add_rollout_group([(prompt, response), ...], rewards)
    episode = library.sample_experience()

Importing this package imports neither torch nor TRL.
"""

from trl_grpo_ext.experience.config import ExperienceConfig
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
from trl_grpo_ext.experience.library import ExperienceLibrary
from trl_grpo_ext.experience.prompting import few_shot_text, lessons_text
from trl_grpo_ext.experience.records import Episode, Lesson
from trl_grpo_ext.experience.reports import Coverage
from trl_grpo_ext.experience.retrieval import Retrieved
from trl_grpo_ext.experience.rows import Stored
from trl_grpo_ext.experience.sampler import AdvantageSampler, gumbel_top_k
from trl_grpo_ext.experience.stats import ExperienceStats
from trl_grpo_ext.experience.trees import SumTree

__all__ = [
    "AdvantageSampler",
    "ConfigChangedError",
    "Coverage",
    "Difference",
    "DiskFullError",
    "Episode",
    "ExperienceConfig",
    "ExperienceError",
    "ExperienceLibrary",
    "ExperienceStats",
    "ForeignFileError",
    "Lesson",
    "LibraryDamagedError",
    "LibraryLockedError",
    "Retrieved",
    "RolloutGroup",
    "SentenceSimilarity",
    "SnapshotConflictError",
    "Stored",
    "SumTree",
    "VersionInfo",
    "few_shot_text",
    "group_advantages",
    "gumbel_top_k",
    "lessons_text",
]

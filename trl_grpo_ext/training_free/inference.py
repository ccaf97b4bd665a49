"""Answers to many questions with a library's lessons in the prompt, as in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_grpo_ext.experience import ExperienceLibrary, Lesson
from trl_grpo_ext.training_free.budget import Meter
from trl_grpo_ext.training_free.cache import CallCache
from trl_grpo_ext.training_free.calls import Caller
from trl_grpo_ext.training_free.changes import domain_lessons
from trl_grpo_ext.training_free.config import TrainingFreeConfig
from trl_grpo_ext.training_free.parsing import without_thoughts
from trl_grpo_ext.training_free.prompts import policy_messages
from trl_grpo_ext.training_free.protocol import Backend, BackendError, ChatRequest
from trl_grpo_ext.training_free.report import LIBRARY_FILE


def library_file(path: Path) -> Path:
    """Return the file of a library: the one given, or that of a result folder.

    Raises:
        ValueError: there is none.
    """
    found = path / LIBRARY_FILE if path.is_dir() else path
    if not found.is_file():
        raise ValueError(f"there is no library at {found}; give a result folder of train-free, or a library's file.")
    return found


def read_lessons(path: Path, domain: str = "") -> list[Lesson]:
    """Return the lessons of a library, of a domain where one is named; the file is not changed.

    Args:
        path: a library's file, or a result folder.
        domain: see `TrainingFreeConfig`.

    Raises:
        ValueError: there is no such file.
        ExperienceError: it is no library.
    """
    with ExperienceLibrary(library_file(path), create=False) as library:
        found = (item.record for item in domain_lessons(library, domain))
        return [record for record in found if isinstance(record, Lesson)]


def answers(
    policy: Backend, prompts: Sequence[Any], lessons: Sequence[Lesson], config: TrainingFreeConfig
) -> list[str | BackendError]:
    """Return the policy's answer to each prompt, without its thoughts, or why there is none.

    Equal prompts are asked once: the seed is that of the config for all.

    Args:
        policy: the model.
        prompts: texts, or lists of messages.
        lessons: what stands in the system message.
        config: `eval_temperature`, `max_completion_length`, `template`, `seed`, `max_attempts` and `budget` are read.

    Raises:
        BudgetReached: a limit of the budget was reached.
    """
    temperature, most = config.eval_temperature, config.max_completion_length
    requests = [
        ChatRequest(policy_messages(prompt, lessons, config.template), temperature, most, config.seed)
        for prompt in prompts
    ]
    cache = CallCache()
    try:
        outcomes = Caller(policy, cache, Meter(config.budget), config.max_attempts).complete(requests)
    finally:
        cache.close()
    return [item if isinstance(item, BackendError) else without_thoughts(item.text) for item in outcomes]

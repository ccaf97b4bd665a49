"""Between the journal and the library: which lessons a run works on, and how a step's record changes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trl_grpo_ext.experience import ExperienceLibrary, Lesson, Stored
from trl_grpo_ext.training_free.operations import Operation, apply_operations


def domain_lessons(library: ExperienceLibrary, domain: str) -> list[Stored]:
    """Return the lessons of a domain, the oldest first; of the whole library for an empty one."""
    return list(library.records("lesson", {"domain": domain} if domain else None))


def texts(lessons: Iterable[Stored]) -> dict[str, str]:
    """Return the text of each lesson by its id."""
    return {item.id: item.record.text for item in lessons if isinstance(item.record, Lesson)}


def change_library(
    library: ExperienceLibrary, step: int, record: Mapping[str, Any], domain: str = "", cause: str = "train-free"
) -> None:
    """Do what a step's record says, as one version of the library, or not at all.

    Args:
        library: the library.
        step: number of the step.
        record: "usage", "retired" and "operations" of it.
        domain: metadata of new lessons.
        cause: for the library's history.
    """
    operations = [item if isinstance(item, Operation) else Operation.from_dict(item) for item in record["operations"]]
    with library.transaction(cause, step):
        if record["usage"]:
            library.record_usage([(name, gain) for name, gain in record["usage"]], step=step)
        if record["retired"]:
            library.retire(*record["retired"], cause="harmful", step=step)
        apply_operations(library, operations, step, {"domain": domain} if domain else None)

"""Between rows of the file and objects: stored records, metadata as text, and the transaction at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl_grpo_ext.experience.records import Episode, Lesson, Record

# What an operation of kind "change" may change. The id stays that of the first content.
CHANGEABLE = ("text", "advantage", "reward", "created", "metadata", "uses", "gain")
# Columns that `as_record` reads, from `records LEFT JOIN prompts`.
RECORD_COLUMNS = (
    "records.id, records.kind, prompts.text, records.text, advantage, reward, records.created, metadata, uses, gain"
)
RECORD_TABLES = "records LEFT JOIN prompts USING (prompt)"


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as the library holds it.

    Args:
        id: stable id.
        record: the episode or lesson.
        uses: how often it was used with an outcome.
        gain: sum over these of (reward with it - baseline of the group).
    """

    id: str
    record: Record
    uses: int = 0
    gain: float = 0.0


def as_record(row: Sequence[Any]) -> Stored:
    """Return the record of a row of RECORD_COLUMNS."""
    name, kind, prompt, text, advantage, reward, created, metadata, uses, gain = row
    common = {"timestamp": created, "metadata": json.loads(metadata) if metadata != "{}" else {}}
    record: Record
    if kind == "lesson":
        record = _unchecked(Lesson, {"text": text, **common})
    else:
        episode = {"prompt": prompt, "response": text, "advantage": advantage, "reward": reward}
        record = _unchecked(Episode, {**episode, **common})
    return Stored(name, record, uses, gain)


def _unchecked(kind: type[Any], fields: dict[str, Any]) -> Any:
    """A record without the checks, which it passed on its way into the file: they would be half the cost of a draw."""
    record = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(record, name, value)
    return record


def metadata_json(metadata: Mapping[str, Any]) -> str:
    """Return metadata as it is stored, so that equal metadata are equal texts."""
    return json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False)


def label_value(value: Any) -> str:
    """Return a metadata value as filters compare it."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


@dataclass
class Counters:
    """What a version row counts."""

    rollouts: int = 0
    stored: int = 0
    pruned: int = 0
    episodes: int = 0
    lessons: int = 0

    def values(self) -> tuple[int, ...]:
        """Return the counts in the order of the columns."""
        return (self.rollouts, self.stored, self.pruned, self.episodes, self.lessons)


@dataclass
class Change:
    """The transaction at hand."""

    version: int
    counters: Counters
    cause: str
    step: int | None
    operations: list[tuple[str, int, str | None, str | None]] = field(default_factory=list)
    touched: bool = False
    broken: bool = False

    def log(self, kind: str, record: int, before: Any = None, after: Any = None) -> None:
        """Note one operation."""
        texts = [None if item is None else json.dumps(item) for item in (before, after)]
        self.operations.append((kind, record, texts[0], texts[1]))
        self.touched = True

    def count(self, **numbers: int) -> None:
        """Add to counters."""
        for name, number in numbers.items():
            setattr(self.counters, name, getattr(self.counters, name) + number)
        self.touched = True

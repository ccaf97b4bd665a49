"""Walking over the records of a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from trl_grpo_ext.experience.records import Record
from trl_grpo_ext.experience.rows import RECORD_COLUMNS, RECORD_TABLES, Stored, as_record
from trl_grpo_ext.experience.store import ExperienceStore

KINDS = ("episode", "lesson")
_PIECE = 500


def scan(store: ExperienceStore, kind: str | None, matching: str, values: Sequence[Any]) -> Iterator[Stored]:
    """Return the live records, the oldest first, a piece at a time: no query stays open while the caller works.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, or None for both, not {kind!r}.")
    kinds = f" AND kind = '{kind}'" if kind else ""
    last = 0
    while True:
        rows = store.rows(
            f"SELECT records.record, {RECORD_COLUMNS} FROM {RECORD_TABLES} WHERE live{kinds}{matching} "
            "AND records.record > ? ORDER BY records.record LIMIT ?",
            (*values, last, _PIECE),
        )
        yield from (as_record(row[1:]) for row in rows)
        if len(rows) < _PIECE:
            return
        last = rows[-1][0]


def of_prompt(store: ExperienceStore, prompt: str) -> list[Record]:
    """Return the episodes of exactly this prompt, the largest advantage first."""
    rows = store.rows(
        f"SELECT {RECORD_COLUMNS} FROM {RECORD_TABLES} WHERE live AND records.prompt = ? "
        "ORDER BY advantage DESC, record",
        (store.prompt_number(prompt),),
    )
    return [as_record(row).record for row in rows]

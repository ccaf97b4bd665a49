"""Metadata filters as SQL: every key of the filter must hold, a list means any of its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trl_grpo_ext.experience.rows import label_value


def check_filter(where: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Return the values, as they are stored, that each key may have.

    Raises:
        ValueError: not a mapping of strings, or an empty list of values.
    """
    if where is None:
        return {}
    if not isinstance(where, Mapping) or not all(isinstance(key, str) for key in where):
        raise ValueError(f"where must map metadata keys to a value or a list of values, not {where!r}.")
    found = {key: value if isinstance(value, list | tuple | set) else [value] for key, value in where.items()}
    for key, values in found.items():
        if not values:
            raise ValueError(f"where[{key!r}] is an empty list, which nothing can match; leave the key out.")
    return {key: [label_value(value) for value in values] for key, values in found.items()}


def condition(where: Mapping[str, Any] | None, scan: bool = False) -> tuple[str, list[str]]:
    """Return "AND ..." for a query over `records`, and its values.

    Args:
        where: the filter.
        scan: whether the query reads the whole table. The labels' index is walked once then, instead of being asked
            for each record.
    """
    parts, values = [], []
    for key, options in check_filter(where).items():
        marks = ", ".join("?" * len(options))
        matching = f"FROM labels WHERE labels.key = ? AND labels.value IN ({marks})"
        if scan:
            parts.append(f" AND records.record IN (SELECT labels.record {matching})")
        else:
            parts.append(f" AND EXISTS (SELECT 1 {matching} AND labels.record = records.record)")
        values += [key, *options]
    return "".join(parts), values

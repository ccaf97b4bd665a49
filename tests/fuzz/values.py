"""Strategies that several targets share: values as YAML and JSON files hold them, and damage to bytes and trees."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

HOSTILE = (
    "",
    " ",
    "\x00",
    "\x1b[2J",
    "\ud800",
    "a" * 3000,
    "9" * 5000,
    "-1",
    "nan",
    "1e999",
    "../../etc/passwd",
    "/dev/zero",
    "{{ ''.__class__ }}",
    "'; DROP TABLE records; --",
    "$(touch x)",
    "[" * 3000,
    "{",
    "```json\n[",
    "<think>",
    "Score: 11",
)
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**70, -(2**70), 0.0, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=30))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from(NUMBERS), st.floats(), TEXTS)
# What a YAML or a JSON file can hold.
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a tree of dictionaries and lists."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        yield tree, key
        yield from places(value)


def damage_tree(draw: st.DrawFn, tree: Any) -> Any:
    """A copy of a tree in which one to three places are another value, or gone."""
    changed = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(changed))
        if not found:
            break
        container, key = found[draw(st.integers(0, len(found) - 1))]
        if draw(st.integers(0, 4)) == 0:
            del container[key]
        else:
            container[key] = draw(TREES)
    return changed


def damage_bytes(draw: st.DrawFn, data: bytes, likely: int = 4000) -> bytes:
    """Bytes with a few of them changed, most within the first `likely`, cut off, or with others put in."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        end = min(len(changed), likely) if draw(st.booleans()) else len(changed)
        if end:
            changed[draw(st.integers(0, end - 1))] = draw(st.integers(0, 255))
    how = draw(st.integers(0, 9))
    if how == 0:
        return bytes(changed[: draw(st.integers(0, len(changed)))])
    if how == 1:
        place = draw(st.integers(0, len(changed)))
        return bytes(changed[:place]) + draw(st.binary(max_size=16)) + bytes(changed[place:])
    return bytes(changed)

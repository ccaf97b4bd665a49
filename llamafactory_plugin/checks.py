"""Checks of single values, each with one sentence: the name, the rule, the value, the way out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llamafactory_plugin.errors import UsageError, nearest

DEFAULT_WAY_OUT = "remove the key for its default"


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse a value that is none of `choices`, with the nearest one.

    Raises:
        UsageError: naming the choices.
    """
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, not {value!r}{nearest(value, choices)}")


def check_number(
    name: str,
    value: Any,
    kind: type,
    least: float,
    most: float = math.inf,
    way_out: str = DEFAULT_WAY_OUT,
) -> None:
    """Refuse a value that is no finite number within [least, most]; None passes.

    Raises:
        UsageError: naming the bounds.
    """
    if value is None:
        return
    is_number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not least <= value <= most:
        noun = "a whole number" if kind is int else "a number"
        bounds = f"at least {least:g}" if most == math.inf else f"at least {least:g} and at most {most:g}"
        raise UsageError(f"{name} must be {noun} of {bounds}, not {value!r}; {way_out}.")

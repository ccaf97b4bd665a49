"""Values of arguments as LLaMA-Factory's users write them: comma strings, YAML lists, inline JSON, numbers as text."""

from __future__ import annotations

import json
import math
from typing import Any

from llamafactory_plugin.errors import UsageError


def split_list(value: Any) -> list[str] | None:
    """`"a, b"`, `["a,b"]` and `["a", "b"]` -> `["a", "b"]`; LLaMA-Factory's comma strings and YAML lists alike."""
    if value is None or value == "":
        return None
    items = value if isinstance(value, (list, tuple)) else [value]
    return [part.strip() for item in items for part in str(item).split(",") if part.strip()] or None


def parse_mapping(name: str, value: Any) -> dict[str, Any]:
    """A mapping given as YAML (a dict) or as inline JSON; None is the empty mapping.

    Raises:
        UsageError: for anything else.
    """
    if value is None or isinstance(value, dict):
        return dict(value or {})
    try:
        parsed = json.loads(value)
    except (TypeError, ValueError):
        parsed = None
    if not isinstance(parsed, dict):
        raise UsageError(
            f"{name}: {value!r} is not a JSON object; LLaMA-Factory splits its command line at spaces when it starts "
            f"torchrun, so write it without spaces, or in the YAML file as `{name}:` with one indented key per line."
        )
    return parsed


def parse_numbers(name: str, items: list[str] | None) -> list[float] | None:
    """Finite numbers out of texts; None for none.

    Raises:
        UsageError: for a text that is no finite number.
    """
    try:
        numbers = [float(item) for item in items or []]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f"{name} must be finite numbers separated by commas, not {','.join(items or [])!r}.")
    return numbers or None


def parse_error_policy(name: str, value: Any) -> str | float:
    """`raise`, `skip`, or a finite number, also when it is written as text.

    Raises:
        UsageError: for anything else.
    """
    if value in ("raise", "skip"):
        return str(value)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(
            f"{name} must be raise (stop), skip (no reward for these rows) or a number to give instead, not {value!r}."
        )
    return number

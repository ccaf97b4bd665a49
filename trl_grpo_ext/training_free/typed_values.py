"""Mappings out of YAML, key by key against the fields of a dataclass. Standard library only."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from trl_grpo_ext._suggest import did_you_mean

_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a text or a list of texts",
    Mapping: "a mapping",
}


def checked_values(cls: type, values: Any, where: str, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return the values, every key of which is a field of the dataclass, and every value of the field's type.

    Args:
        cls: the dataclass.
        values: what stands in the file.
        where: the section's name, for messages.
        without: fields that the file may not set.

    Raises:
        ValueError: no mapping, an unknown or a missing key, or a value of another type.
    """
    known = {item.name: item for item in fields(cls) if item.name not in without}
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping with keys out of {', '.join(known)}, not {values!r}.")
    refuse_unknown(values, known, where)
    hints = get_type_hints(cls)
    for name, value in values.items():
        _check_type(f"{where}.{name}", value, hints[name])
    missing = next((name for name, item in known.items() if _is_needed(item) and name not in values), None)
    if missing is not None:
        raise ValueError(f"{where}.{missing} is missing; it must be {described(hints[missing])}.")
    return dict(values)


def refuse_unknown(values: Mapping[Any, Any], known: Sequence[str] | Mapping[str, Any], where: str = "") -> None:
    """Refuse a key that there is not, with the nearest one that there is.

    Raises:
        ValueError: naming it.
    """
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        hint = did_you_mean(unknown, known) or "."
        place = f"{where}.{unknown}" if where else unknown
        raise ValueError(f"{place}: there is no such key{hint} There are: {', '.join(known)}.")


def described(hint: Any) -> str:
    """Return a type in words, as a person writes it in YAML."""
    return " or ".join(_WORDS.get(_plain(kind), "null") for kind in _options(hint))


def _is_needed(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _check_type(name: str, value: Any, hint: Any) -> None:
    if any(_fits(value, kind) for kind in _options(hint)):
        return
    number = isinstance(value, str) and {int, float} & set(_options(hint))
    way_out = " (YAML reads 1e-3 as a text; write 1.0e-3)" if number and "e" in value.lower() else ""
    raise ValueError(f"{name} must be {described(hint)}, not {value!r}{way_out}; correct it, or remove the key.")


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _plain(kind: Any) -> Any:
    return get_origin(kind) or kind


def _fits(value: Any, kind: Any) -> bool:
    plain = _plain(kind)
    if plain is tuple:
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    if plain in (int, float):
        return not isinstance(value, bool) and isinstance(value, int if plain is int else int | float)
    return isinstance(value, plain)

"""What a model's text means. Pure functions: they return a value or raise ParseError, whatever the text is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from trl_grpo_ext.training_free.operations import HANDLE, KINDS, Operation

# The reflector's error message repeats no more than this of the text.
EXCERPT = 120
# More than this is no answer but a runaway generation.
MAX_CHARACTERS = 200_000
MAX_BRACKETS = 1000

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
# A bracket, and what follows it where it can hardly be anything but JSON.
_START = re.compile(r"(?=(\[\s*[\"{\[]|{\s*\")|)[\[{]")
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
# "[G0]. ", "G12: " or "3. " before a lesson.
_LABEL = re.compile(r"^(?:\[[GL]?\d+\]|[GL]\d+|\d+(?=[.:)]\s))[.:)]?\s+(?=\S)")
_KIND_KEYS = ("operation", "op", "option", "action", "kind", "type")
_TEXT_KEYS = ("text", "content", "experience", "lesson", "new_text")
_ID_KEYS = ("id", "ids", "modified_from", "merged_from", "lesson_id", "lesson_ids")
_SYNONYMS = {"modify": "update", "edit": "update", "revise": "update", "remove": "delete", "insert": "add"}
_NOTHING = ("none", "keep", "nothing", "no-op", "noop")


class ParseError(ValueError):
    """The text holds no answer of the form asked for; the message is written for the model that is asked again."""


def without_thoughts(text: str) -> str:
    """Return a text without its <think>...</think> parts, an unfinished one at the end included."""
    return _THOUGHT.sub("", text).strip()


def parse_summary(text: str) -> str:
    """Return a summary of a rollout.

    Raises:
        ParseError: there is none.
    """
    found = _clean(without_thoughts(text[:MAX_CHARACTERS]))
    if not found:
        raise ParseError("The answer was empty; write the summary as plain text.")
    return found


def parse_operations(text: str, lessons: Mapping[str, str], most: int | None = None) -> list[Operation]:
    """Return the operations of a reply: the last JSON list, or object, of the expected form in it.

    Objects have "operation" (add, update, merge, delete or none), "text", and "id" or "ids", which are resolved from
    handles to ids; an unknown one is left as it is. An empty list, and "none", are no operations.

    Args:
        text: the reply; thoughts, prose and code fences around the JSON do no harm.
        lessons: text by id, of the library.
        most: how many operations are allowed.

    Raises:
        ParseError: no JSON, another form, or too many operations. Nothing else is ever raised.
    """
    plain = without_thoughts(text[:MAX_CHARACTERS])
    problem = ""
    for value in _json_values(plain):
        try:
            found = [item for entry in _entries(value) for item in _operation(entry, lessons)]
        except ParseError as error:
            problem = problem or str(error)
            continue
        if most is not None and len(found) > most:
            raise ParseError(f"There are {len(found)} operations, at most {most} are allowed; keep the most useful.")
        return found
    raise ParseError(problem or f"There is no JSON list of operations in the answer {_excerpt(plain)}.")


def _json_values(text: str) -> Iterator[Any]:
    """The JSON values of a text that may be the answer, the likeliest first: fenced and late ones."""
    blocks = [match[1] for match in _FENCE.finditer(text)]
    for block in [*reversed(blocks), text]:
        found = list(_scan(block))
        # Several objects one after the other are one answer.
        start = next((place for place in range(len(found), 0, -1) if not isinstance(found[place - 1], dict)), 0)
        if len(found) - start > 1:
            yield [entry for value in found[start:] for entry in _entries(value)]
        yield from reversed(found[:start] if len(found) - start > 1 else found)


def _scan(text: str) -> Iterator[Any]:
    """Every JSON list and object that stands in a text on its own."""
    decoder, place = json.JSONDecoder(strict=False), 0
    # A text of brackets only would take quadratic time.
    for _ in range(MAX_BRACKETS):
        match = _START.search(text, place)
        if match is None:
            return
        try:
            value, place = decoder.raw_decode(text, match.start())
            yield value
        except (ValueError, RecursionError):
            # The complete objects within a list that is cut off are not the whole answer.
            if match[1]:
                raise ParseError("The JSON is malformed or cut off; answer with complete, valid JSON only.") from None
            place = match.start() + 1


def _entries(value: Any) -> list[Any]:
    if isinstance(value, dict):
        inner = value.get("operations", value.get("lessons"))
        return inner if isinstance(inner, list) else [value]
    return value if isinstance(value, list) else []


def _operation(entry: Any, lessons: Mapping[str, str]) -> list[Operation]:
    if not isinstance(entry, dict):
        raise ParseError(f"Each operation must be a JSON object, not {_excerpt(entry)}.")
    kind = _kind(entry)
    if kind in _NOTHING:
        return []
    if kind not in KINDS:
        raise ParseError(f'"operation" must be add, update, merge, delete or none, not {_excerpt(kind)}.')
    names = tuple(dict.fromkeys(_resolve(name, lessons) for name in _ids(entry)))
    text = "" if kind == "delete" else _text(entry, kind)
    if kind == "merge" and len(names) == 1:
        kind = "update"
    if kind != "add" and not names:
        raise ParseError(f'A {kind} operation needs the "id" of the lesson.')
    if kind in ("update", "delete") and len(names) > 1:
        raise ParseError(f'A {kind} operation has one "id", not {len(names)}; use merge, or several operations.')
    return [Operation(kind, text, () if kind == "add" else names)]  # type: ignore[arg-type]


def _first(entry: Mapping[Any, Any], keys: tuple[str, ...]) -> Any:
    return next((entry[key] for key in keys if entry.get(key) not in (None, "", [])), None)


def _kind(entry: Mapping[Any, Any]) -> str:
    value = _first(entry, _KIND_KEYS)
    if not isinstance(value, str):
        raise ParseError(f'"operation" must be add, update, merge, delete or none, not {_excerpt(value)}.')
    kind = value.strip().lower()
    return _SYNONYMS.get(kind, kind)


def _text(entry: Mapping[Any, Any], kind: str) -> str:
    value = _first(entry, _TEXT_KEYS)
    if not isinstance(value, str) or not _clean(value):
        raise ParseError(f'A {kind} operation needs the lesson as "text", a string that is not empty.')
    return _LABEL.sub("", _clean(value))


def _ids(entry: Mapping[Any, Any]) -> list[str]:
    value = _first(entry, _ID_KEYS)
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int) and not isinstance(item, bool) for item in values):
        raise ParseError(f'"id" must be the id of a lesson as a string, not {_excerpt(value)}.')
    return [str(item).strip().strip("[]").strip() for item in values]


def _resolve(name: str, lessons: Mapping[str, str]) -> str:
    """The id that a handle stands for, where that is one lesson; the name itself otherwise."""
    found = [known for known in lessons if len(name) >= HANDLE and known.startswith(name.lower())]
    return found[0] if len(found) == 1 else name


def _clean(text: str) -> str:
    """One line without control characters and half surrogate pairs, which can't be stored."""
    plain = text.encode("utf-8", "replace").decode()
    return " ".join("".join(mark if mark.isprintable() else " " for mark in plain).split())


def _excerpt(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = "a deeply nested value"
    return text if len(text) <= EXCERPT else text[:EXCERPT] + "..."

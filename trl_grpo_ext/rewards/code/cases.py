"""The tests of a row, in the forms in which data sets hold them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_COLUMNS = ("tests", "test_cases", "test_list", "input_output")
_FORMS = (
    "a list of Python sources (MBPP), a list of {'input': ..., 'output': ...} (LiveCodeBench), "
    "or {'inputs': [...], 'outputs': [...]} (APPS)"
)


@dataclass(frozen=True)
class Statement:
    """Python source that raises nothing when the program is right."""

    source: str


@dataclass(frozen=True)
class Call:
    """A function by name, its arguments, and what it must return."""

    name: str
    arguments: list[Any]
    expected: Any


@dataclass(frozen=True)
class Dialogue:
    """What a program reads from standard input, and what it must then have written to standard output."""

    given: str
    expected: str


Case = Statement | Call | Dialogue


def _loaded(column: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"column {column!r} is a string that is not JSON; it must hold {_FORMS}") from error


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _arguments(given: Any) -> list[Any]:
    # LiveCodeBench writes one JSON value per line and argument; APPS has lists.
    return [json.loads(line) for line in given.splitlines() if line.strip()] if isinstance(given, str) else list(given)


def _called(name: str, given: Any, expected: Any, *, wrapped: bool) -> Call:
    if isinstance(expected, str) and not wrapped:
        expected = json.loads(expected)
    if wrapped and isinstance(expected, list) and len(expected) == 1:
        (expected,) = expected
    return Call(name, _arguments(given), expected)


def _pairs(value: Mapping[str, Any]) -> list[Case]:
    """APPS: `fn_name` is there for functions, whose result stands in a list of its own."""
    inputs, outputs, name = value["inputs"], value["outputs"], value.get("fn_name")
    if len(inputs) != len(outputs):
        raise ValueError(f"it has {len(inputs)} inputs and {len(outputs)} outputs")
    both = zip(inputs, outputs, strict=True)
    if name:
        return [_called(name, given, expected, wrapped=True) for given, expected in both]
    return [Dialogue(_text(given), _text(expected)) for given, expected in both]


def _one(item: Any) -> Case:
    if isinstance(item, str):
        return Statement(item)
    name = item.get("fn_name")
    if name:
        return _called(name, item["input"], item["output"], wrapped=False)
    if item.get("testtype", item.get("type")) in ("functional", "function_call"):
        raise ValueError("a test that calls a function needs 'fn_name'")
    return Dialogue(_text(item["input"]), _text(item["output"]))


def parse_cases(column: str, value: Any) -> list[Case]:
    """Return the tests that one cell holds.

    Args:
        column: its column, for the messages.
        value: Python sources, pairs of input and output, or the JSON text of these.

    Raises:
        ValueError: another form, or no test at all.
    """
    value = _loaded(column, value)
    try:
        cases = _pairs(value) if isinstance(value, Mapping) else [_one(item) for item in value]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"column {column!r} holds no tests ({error!r}); it must hold {_FORMS}") from error
    if not cases:
        raise ValueError(f"column {column!r} holds no test; drop the rows without tests")
    return cases


def humaneval_case(test: str, entry_point: str) -> Statement:
    """Return HumanEval's `test` column as a test: its `check` called on the function.

    Raises:
        ValueError: `entry_point` is not a name.
    """
    if not isinstance(entry_point, str) or not entry_point.isidentifier():
        raise ValueError(f"column 'entry_point' must hold the name of a function, not {entry_point!r:.80}")
    return Statement(f"{test}\n\ncheck({entry_point})\n")


def cases_of_row(columns: Mapping[str, Sequence[Any] | None], row: int) -> list[Case]:
    """Return the tests of a row from whichever of the known columns has them.

    Raises:
        ValueError: none has, or more than one.
    """
    given = {name: values[row] for name, values in columns.items() if values is not None}
    found = [name for name in ("test", *_COLUMNS) if given.get(name) is not None]
    if len(found) != 1 or (found == ["test"] and given.get("entry_point") is None):
        raise ValueError(
            f"a row needs its tests in exactly one of {', '.join(_COLUMNS)}, or in 'test' with 'entry_point' "
            f"(HumanEval); this one has {', '.join(found) or 'none of them'}"
        )
    if found == ["test"]:
        return [humaneval_case(given["test"], given["entry_point"])]
    return parse_cases(found[0], given[found[0]])

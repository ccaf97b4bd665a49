"""The process of the model's program, and the values that travel between it and its judge.

Run by file name (`python -I candidate.py <descriptor>`), so it imports the standard library only. It is told what to
call and with which arguments, never what is expected; the judge gets data back, never code. Each message is a line of
JSON.

Values: None, booleans, numbers and strings stand for themselves, lists for lists; an object with one key names the
type of its value. What has no such form stays here, and the judge gets a reference to it.
"""

import json
import operator
import socket
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

# Python refuses to read longer decimal integers; hexadecimal ones are read in linear time.
_LARGEST_INT = 1 << 63


def _is_scalar(value: Any) -> bool:
    return type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0


def encode(value: Any, keep: Callable[[Any], dict[str, Any]]) -> Any:
    """Return a value in a form that JSON holds.

    Args:
        value: anything; subclasses of the built-in types become these.
        keep: gives the form of a value that can't travel.

    Raises:
        RecursionError: nested too deep, or within itself.
    """
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int):
        return int(value) if -_LARGEST_INT < value < _LARGEST_INT else {"int": hex(value)}
    if isinstance(value, list):
        return [encode(item, keep) for item in value]
    if isinstance(value, (tuple, set, frozenset)):
        name = next(kind.__name__ for kind in (tuple, set, frozenset) if isinstance(value, kind))
        return {name: [encode(item, keep) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key, keep), encode(item, keep)] for key, item in value.items()]}
    return _encode_rare(value, keep)


def _encode_rare(value: Any, keep: Callable[[Any], dict[str, Any]]) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {"bytearray" if isinstance(value, bytearray) else "bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [encode(part, keep) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, Fraction):
        return {"Fraction": [hex(value.numerator), hex(value.denominator)]}
    if isinstance(value, Decimal):
        return {"Decimal": str(value)}
    return encode(value.item(), keep) if _is_scalar(value) else keep(value)


_DECODERS: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "int": lambda data, read: int(data, 16),
    "tuple": lambda data, read: tuple(map(read, data)),
    "set": lambda data, read: set(map(read, data)),
    "frozenset": lambda data, read: frozenset(map(read, data)),
    "dict": lambda data, read: {read(key): read(item) for key, item in data},
    "bytes": lambda data, read: bytes.fromhex(data),
    "bytearray": lambda data, read: bytearray.fromhex(data),
    "complex": lambda data, read: complex(*data),
    "range": lambda data, read: range(*map(read, data)),
    "Fraction": lambda data, read: Fraction(*(int(part, 16) for part in data)),
    "Decimal": lambda data, read: Decimal(data),
}


def decode(data: Any, find: Callable[[int], Any]) -> Any:
    """Return the value of a form that `encode` made.

    Args:
        data: what JSON held.
        find: gives the object of a reference.

    Raises:
        ValueError, TypeError, KeyError, ArithmeticError, RecursionError: it is no such form.
    """

    def read(part: Any) -> Any:
        return decode(part, find)

    if isinstance(data, list):
        return [read(item) for item in data]
    if not isinstance(data, dict):
        return data
    ((name, content),) = data.items()
    return find(int(content)) if name == "reference" else _DECODERS[name](content, read)


class Candidate:
    """Runs the program, keeps its objects, and does with them what the judge asks for.

    Args:
        stream: the connection, read and written by lines.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._space: dict[str, Any] = {"__name__": "candidate"}
        self._objects: list[Any] = []
        self._keys: dict[int, int] = {}
        self._operations: dict[str, Callable[..., Any]] = {
            "run": lambda code: exec(compile(code, "candidate.py", "exec"), self._space),
            "defined": lambda names: [name for name in names if name in self._space],
            "name": self._space.__getitem__,
            "call": lambda target, args, named: target(*args, **named),
            "attribute": getattr,
            "item": operator.getitem,
            "iterator": iter,
            "next": next,
            "length": len,
            "truth": bool,
            "text": str,
        }

    def _keep(self, value: Any) -> dict[str, Any]:
        if id(value) not in self._keys:
            self._keys[id(value)] = len(self._objects)
            self._objects.append(value)
        return {"reference": self._keys[id(value)]}

    def answer(self, line: bytes) -> dict[str, Any]:
        """Do what one line asks for. Arguments that the program changed go back, as they do within one process."""
        name, sent = json.loads(line)
        operands = decode(sent, self._objects.__getitem__)
        try:
            reply = {"value": encode(self._operations[name](*operands), self._keep)}
        except BaseException as failure:
            reply = {"error": type(failure).__name__, "message": str(failure)[:500]}
        after = encode(operands, self._keep)
        return reply | ({"changed": after} if name == "call" and after != sent else {})

    def serve(self) -> None:
        """Answer until the judge closes the connection."""
        while line := self._stream.readline():
            self._stream.write(json.dumps(self.answer(line)).encode() + b"\n")
            self._stream.flush()


if __name__ == "__main__":
    Candidate(socket.socket(fileno=int(sys.argv[1])).makefile("rwb")).serve()

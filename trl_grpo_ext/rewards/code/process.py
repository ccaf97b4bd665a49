"""The candidate's process as its judge sees it: requests, replies, and references to objects that stay there."""

import builtins
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from trl_grpo_ext.rewards.code import candidate
from trl_grpo_ext.rewards.code.candidate import decode, encode

MAX_REPLY_BYTES = 16 << 20

_NONSENSE = (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError, MemoryError)


class CandidateGone(BaseException):
    """No answer came in time, or no sensible one. Not an Exception: a test that expects one must not pass by it."""


class CandidateError(Exception):
    """The program raised an exception of a type of its own."""


def candidate_arguments() -> dict[str, Any]:
    """Return the `subprocess.Popen` arguments of a program by the model: no output, a session of its own."""
    nowhere = subprocess.DEVNULL
    return {"stdin": nowhere, "stdout": nowhere, "stderr": nowhere, "start_new_session": True}


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and its process group, and reap it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _exception(name: str, message: str) -> Exception:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):
            return kind(message)
    return CandidateError(f"{name}: {message}")


def _update(original: Any, changed: Any) -> None:
    """Give an argument the content that the program left in its copy."""
    if type(original) is not type(changed) or original == changed:
        return
    if isinstance(original, (list, bytearray)):
        original[:] = changed
    elif isinstance(original, (dict, set)):
        original.clear()
        original.update(changed)


class CandidateProcess:
    """Runs one program, and answers for the objects in it.

    Args:
        code: the program.
        until: a time of `time.monotonic()`: no answer is waited for any longer. May be moved.

    Attributes:
        gone: whether it has failed to answer, and will not be asked again.

    Raises:
        CandidateGone, or the program's exception: its top level does not get to its end.
    """

    def __init__(self, code: str, until: float) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-I", candidate.__file__, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), **candidate_arguments())
        self._socket, self._buffer, self.until, self.gone = ours, bytearray(), until, False
        try:
            self.ask("run", code)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process; safe to call twice."""
        self._socket.close()
        end(self._process)

    def defined(self, names: list[str]) -> dict[str, Any]:
        """Return the objects that the program's top level has under these names."""
        found = self.ask("defined", names)
        return {name: self.ask("name", name) for name in names if isinstance(found, list) and name in found}

    def ask(self, operation: str, *operands: Any) -> Any:
        """Have the candidate do something, and return its result.

        Raises:
            CandidateGone: no answer; `gone` is true from now on.
            TypeError: an operand can't travel.
            Exception: what the program raised.
        """
        request = json.dumps([operation, encode(list(operands), _reference)]).encode() + b"\n"
        try:
            reply = json.loads(self._exchange(request))
            value, changed = (decode(reply.get(key), self._remote) for key in ("value", "changed"))
            error, message = reply.get("error"), str(reply.get("message"))
        except _NONSENSE as failure:
            self.gone = True
            raise CandidateGone(f"{type(failure).__name__}: {failure}"[:200]) from None
        if operation == "call" and isinstance(changed, list) and len(changed) == 3:
            _update_arguments(operands, changed)
        if error is not None:
            raise _exception(str(error), message)
        return value

    def _exchange(self, request: bytes) -> bytearray:
        self._socket.settimeout(self._left())
        self._socket.sendall(request)
        while (length := self._buffer.find(b"\n")) < 0:
            self._socket.settimeout(self._left())
            part = self._socket.recv(1 << 20)
            if not part or len(self._buffer) > MAX_REPLY_BYTES:
                raise OSError("the program ended" if not part else "the program's answer is too long")
            self._buffer += part
        line = self._buffer[:length]
        del self._buffer[: length + 1]
        return line

    def _left(self) -> float:
        left = self.until - time.monotonic()
        if self.gone or left <= 0:
            raise TimeoutError("timed out")
        return left

    def _remote(self, key: int) -> "Remote":
        return Remote(self, key)


class Remote:
    """An object in the candidate's process. Its operations happen there and give data, or another reference.

    It is equal to itself only: an object whose program calls it equal to everything passes no test.
    """

    __slots__ = ("_key", "_process")

    def __init__(self, process: CandidateProcess, key: int) -> None:
        self._process, self._key = process, key

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._process.ask("call", self, list(args), named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._process.ask("attribute", self, name)

    def __getitem__(self, key: Any) -> Any:
        return self._process.ask("item", self, key)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._process.ask("iterator", self)
        # A generator may not raise StopIteration itself.
        with contextlib.suppress(StopIteration):
            while True:
                yield self._process.ask("next", iterator)

    def __len__(self) -> int:
        return int(self._process.ask("length", self))

    def __bool__(self) -> bool:
        return self._process.ask("truth", self) is True

    def __str__(self) -> str:
        return str(self._process.ask("text", self))


def _reference(value: Any) -> dict[str, Any]:
    if type(value) is not Remote:
        raise TypeError(f"a test hands over a {type(value).__name__}, which can't be sent to the program's process")
    return {"reference": value._key}


def _update_arguments(operands: tuple[Any, ...], changed: list[Any]) -> None:
    _, positional, named = operands
    _, new_positional, new_named = changed
    if isinstance(new_positional, list) and len(new_positional) == len(positional):
        for original, new in zip(positional, new_positional, strict=True):
            _update(original, new)
    for name, original in named.items():
        _update(original, new_named.get(name) if isinstance(new_named, dict) else None)

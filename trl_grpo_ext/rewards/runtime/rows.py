"""Running rows inside a worker: one call per row, or one for all; in the worker itself, or in a throw-away fork."""

import contextlib
import inspect
import json
import math
import os
import pickle
import select
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from trl_grpo_ext.rewards.runtime.functions import RewardFunction
from trl_grpo_ext.rewards.runtime.messages import MAX_REPLY_BYTES, BadMessage, decode_reply
from trl_grpo_ext.rewards.runtime.sandbox import limit_cpu

Reply = dict[str, Any]
_TRACE_CHARACTERS = 4000
_MAX_LOGS = 1000


class TrainerStateCopy:
    """The trainer's state as plain values, read when first asked for. Changing it changes nothing in the trainer.

    Raises:
        AttributeError: the field does not exist, or held something other than numbers, texts, lists and dictionaries.
    """

    def __init__(self, data: bytes) -> None:
        self.__dict__["_data"] = data
        self.__dict__["_was_read"] = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__dict__.update(pickle.loads(self._data), _was_read=True)
        if name not in self.__dict__:
            raise AttributeError(f"trainer_state has no plain field {name!r} in a worker process")
        return self.__dict__[name]


class _Logs:
    """Collects what a reward function logs, to be replayed in the trainer."""

    def __init__(self) -> None:
        self.extra: list[tuple[str, list[Any]]] = []
        self.metrics: list[tuple[str, float]] = []

    def log_extra(self, column: str, values: Any) -> None:
        if len(self.extra) < _MAX_LOGS:
            self.extra.append((str(column), list(values)))

    def log_metric(self, name: str, value: Any) -> None:
        if len(self.metrics) < _MAX_LOGS:
            self.metrics.append((str(name), float(value)))


def _reward(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"the reward is {number}; return a finite number, or None to leave the row out")
    return number


def checked_rewards(values: Any, count: int) -> list[float | None]:
    """Return what a reward function returned as finite numbers or None.

    Args:
        values: anything iterable, or an awaitable of it.
        count: how many there must be.

    Raises:
        TypeError, ValueError: not numbers, not finite, or another count.
    """
    if inspect.isawaitable(values):
        import asyncio

        async def waited() -> Any:
            return await values

        values = asyncio.run(waited())
    rewards = list(values)
    if len(rewards) != count:
        raise ValueError(f"the reward function returned {len(rewards)} rewards for {count} completions")
    return [_reward(value) for value in rewards]


def call(func: RewardFunction, columns: dict[str, Any], count: int, state: bytes | None, wants_logs: bool) -> Reply:
    """Call the function once and describe what happened, in values that JSON can hold.

    Returns:
        `rewards` and, where there are any, `extra`, `metrics`, `state_read`; or `error` (one line) and `trace`.
    """
    logs = _Logs()
    arguments = dict(columns)
    copy = TrainerStateCopy(state) if state is not None else None
    if copy is not None:
        arguments["trainer_state"] = copy
    if wants_logs:
        arguments |= {"log_extra": logs.log_extra, "log_metric": logs.log_metric}
    try:
        rewards = checked_rewards(func(**arguments), count)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        trace = "".join(traceback.format_exception(error))[-_TRACE_CHARACTERS:]
        return {"error": f"{type(error).__name__}: {error}"[:_TRACE_CHARACTERS], "trace": trace}
    reply: Reply = {"rewards": rewards, "extra": logs.extra, "metrics": logs.metrics}
    if copy is not None and copy.__dict__["_was_read"]:
        reply["state_read"] = True
    return {name: value for name, value in reply.items() if value or name == "rewards"}


def encode(reply: Reply) -> bytes:
    """Return a reply as JSON; values that a function logged and JSON can't hold become their `repr`."""
    return json.dumps(reply, default=repr).encode()


def _read_all(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    return b"".join(parts)


@contextlib.contextmanager
def _row_processes(whole_namespace: bool, child: int) -> Iterator[None]:
    """On leaving, end the row's fork and what it started (all of the namespace, or its process group)."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1 if whole_namespace else -child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def call_in_fork(
    work: Callable[[], bytes], cpu_seconds: float, whole_namespace: bool, in_child: Callable[[], None]
) -> bytes:
    """Run `work` in a fork that is thrown away, so that nothing the row does is seen by later rows.

    Args:
        work: what to run.
        cpu_seconds: CPU time of the fork.
        whole_namespace: whether this process has a process namespace, so that every other process in it belongs to
            the row and ends with it; else those in the row's process group do.
        in_child: runs first in the fork.

    Returns:
        What `work` returned, or an error reply when the fork ended without an answer.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            os.close(reader)
            in_child()
            limit_cpu(cpu_seconds, final=True)
            left = memoryview(work())
            while left:
                left = left[os.write(writer, left) :]
        os._exit(0)
    os.close(writer)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    try:
        with _row_processes(whole_namespace, child):
            # The end of the row's own process is the end of the row, also when something it started holds the pipe.
            data = _read_until_end(reader, child)
    finally:
        os.close(reader)
    return _checked(data)


def _checked(data: bytes) -> bytes:
    try:
        # A row may write what it likes; the trainer gives up a worker that sends nonsense.
        decode_reply(data)
    except BadMessage:
        return encode({"error": "the row's process ended without an answer", "trace": ""})
    return data


def _read_until_end(reader: int, child: int) -> bytes:
    """Return what the row's process wrote until it closed the pipe or ended; b"" when that is too much."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    parts: list[bytes] = []
    size = 0
    while True:
        if poll.poll(5):
            part = os.read(reader, 1 << 20)
            parts.append(part)
            size += len(part)
            if size > MAX_REPLY_BYTES:
                return b""
            if not part:
                os.waitpid(child, 0)
                return b"".join(parts)
        elif os.waitpid(child, os.WNOHANG)[0]:
            os.set_blocking(reader, False)
            with contextlib.suppress(BlockingIOError):
                while part := os.read(reader, 1 << 20):
                    parts.append(part)
            return b"".join(parts)

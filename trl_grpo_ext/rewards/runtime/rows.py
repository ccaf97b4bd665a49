"""Calling a reward function inside a worker, for one row or for all, and describing what happened."""

import inspect
import json
import math
import pickle
import traceback
from typing import Any

from trl_grpo_ext.rewards.runtime.functions import RewardFunction

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

"""Rewards of different functions at the same time, although TRL calls plain functions one after the other.

TRL hands the same objects to every reward function of a batch. So the first isolated reward of a trainer that is
called can start the work of those after it, and each of these finds its own under way when its turn comes. The trainer
is found among the caller's variables; without one, rewards run one after the other.
"""

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from types import FrameType
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")
# The method itself, and a comprehension in it (until Python 3.12 a frame of its own).
_FRAMES = 2


def rewards_after(reward: Any) -> list[Any]:
    """Return the reward functions that a trainer calls after this one.

    Args:
        reward: the one being called, by whom this function is called.

    Returns:
        Those after it in `reward_funcs` of the object whose method calls; none where there is no such object, or where
        it has the reward twice.
    """
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_FRAMES):
        rewards = _reward_funcs(frame)
        places = [place for place, other in enumerate(rewards) if other is reward]
        if places:
            return list(rewards[places[0] + 1 :]) if len(places) == 1 else []
        frame = frame.f_back if frame else None
    return []


def _reward_funcs(frame: FrameType | None) -> Sequence[Any]:
    owner = frame.f_locals.get("self") if frame else None
    rewards = getattr(owner, "reward_funcs", None)
    return rewards if isinstance(rewards, (list, tuple)) else ()


class Ahead(Generic[Result]):
    """Work on one batch in a thread of its own, until its reward's turn.

    Args:
        arguments: of the call that is expected.
        work: what to do; gets an event that says that nobody wants the result any more.
    """

    def __init__(self, arguments: Mapping[str, Any], work: Callable[[threading.Event], Result]) -> None:
        self._arguments = dict(arguments)
        self._work = work
        self._stop = threading.Event()
        self._owner = os.getpid()
        self._result: list[Result] = []
        self._error: BaseException = CancelledError("the work did not get to its end")
        # A daemon: it must not keep a trainer alive that ends with an error.
        self._thread = threading.Thread(target=self._run, name="reward-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result.append(self._work(self._stop))
        except BaseException as error:
            self._error = error

    def is_for(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether these are the very objects it works on, in the process that it works in."""
        return (
            os.getpid() == self._owner
            and not self._stop.is_set()
            and arguments.keys() == self._arguments.keys()
            and all(value is self._arguments[name] for name, value in arguments.items())
        )

    def cancel(self) -> None:
        """Start no further row; the running one ends at its deadline at the latest."""
        self._stop.set()

    def result(self) -> Result:
        """Wait for the result, or raise what the work raised. An interrupt of the wait cancels the work."""
        try:
            self._thread.join()
        except BaseException:
            self.cancel()
            raise
        if not self._result:
            raise self._error
        return self._result[0]

"""Runs awaitables from synchronous code, on an event loop of its own in a daemon thread.

One loop per process, for its whole life: HTTP clients that a reward function keeps are bound to the loop that they
were first used on. It works while the calling thread runs a loop too, because it is not that loop.
"""

import asyncio
import os
import threading
from collections.abc import Awaitable, Sequence
from typing import Any

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def _forget_loop() -> None:
    """After a fork the thread is gone, and the lock may be held by a thread that is gone too."""
    global _lock, _loop, _thread
    _lock, _loop, _thread = threading.Lock(), None, None


def exit_error(error: SystemExit) -> RuntimeError:
    """Return what `sys.exit()` in a reward function counts as: an error of the row, not the end of the training."""
    return RuntimeError(f"the reward function called exit({error.code!r})")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_loop)


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="reward-event-loop", daemon=True)
            _thread.start()
        return _loop


class _Interrupted:
    """Carries an interrupt out of the loop's thread, which it would end: every later call would wait for ever."""

    def __init__(self, error: KeyboardInterrupt) -> None:
        self.error = error


async def _outcome(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except asyncio.CancelledError:
        return RuntimeError("the reward function was cancelled by a task of its own")
    except SystemExit as error:
        return exit_error(error)
    except KeyboardInterrupt as error:
        return _Interrupted(error)
    except Exception as error:
        return error


async def _outcomes(awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*map(_outcome, awaitables))


def run_awaitables(awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
    """Await all at the same time and return the result, or the exception, of each.

    Without a deadline of its own. An interrupt in the calling thread cancels what is still running.

    Args:
        awaitables: coroutines or other awaitables that are not bound to another event loop.

    Returns:
        One result or exception per awaitable, in their order. `sys.exit()` and a cancelled task are exceptions too.

    Raises:
        KeyboardInterrupt: one of them raised it, or it came to the calling thread.
        RuntimeError: called from within an awaitable that runs here, which would wait for itself.
    """
    loop = _running_loop()
    if threading.current_thread() is _thread:
        for awaitable in awaitables:
            if asyncio.iscoroutine(awaitable):
                awaitable.close()
        raise RuntimeError(
            "An async reward function called a reward adapter: the adapter would wait for its own event loop. "
            "Await the adapted function itself there."
        )
    future = asyncio.run_coroutine_threadsafe(_outcomes(awaitables), loop)
    try:
        outcomes = future.result()
    except BaseException:
        future.cancel()
        raise
    for outcome in outcomes:
        if isinstance(outcome, _Interrupted):
            raise outcome.error
    return outcomes

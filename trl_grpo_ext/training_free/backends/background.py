"""Asynchronous work in a thread of its own, its results handed over in the caller's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def deliver_here(work: Callable[[Callable[[T], None]], Awaitable[None]], deliver: Callable[[T], None]) -> None:
    """Run `work(put)` in an event loop of its own, and call `deliver(item)` here for each item that it puts.

    A thread, since the caller may have a running event loop (a notebook has). What `deliver` raises, Ctrl-C included,
    cancels the work, waits until it has cleaned up, and is raised; so is what the work raises.

    Args:
        work: a coroutine function; it is given what hands an item over.
        deliver: called in the caller's thread, in the order of the items.
    """
    worker = _Worker(work)
    worker.start()
    try:
        while (item := worker.items.get()) is not worker:
            deliver(item)
    finally:
        worker.cancel()
        worker.join()
    if worker.error is not None:
        raise worker.error


class _Worker(threading.Thread, Generic[T]):
    def __init__(self, work: Callable[[Callable[[T], None]], Awaitable[None]]) -> None:
        super().__init__(daemon=True)
        self.items: SimpleQueue[Any] = SimpleQueue()
        self.error: BaseException | None = None
        self._work, self._loop = work, asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._cancelled = threading.Event()

    def run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            self.items.put(self)

    async def _main(self) -> None:
        self._task = asyncio.current_task()
        if not self._cancelled.is_set():
            await self._work(self.items.put)

    def cancel(self) -> None:
        self._cancelled.set()
        try:
            self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())
        except RuntimeError:
            # The loop is closed: the work is done.
            return

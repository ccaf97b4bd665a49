"""The pool of reward workers of one trainer process."""

import contextlib
import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from trl_grpo_ext.rewards.runtime.cache import ResultCache
from trl_grpo_ext.rewards.runtime.jobs import Job, Outcome, Run
from trl_grpo_ext.rewards.runtime.process import Capabilities
from trl_grpo_ext.rewards.runtime.settings import WorkerSettings
from trl_grpo_ext.rewards.runtime.slots import Slot

COUNTERS = ("rows", "errors", "timeouts", "kills", "skips", "cache_hits")
_runtimes: "weakref.WeakSet[RewardRuntime]" = weakref.WeakSet()


def _stop_all(slots: Sequence[Slot], owner: int) -> None:
    if os.getpid() == owner:
        for slot in slots:
            slot.close()


class RewardRuntime:
    """Worker processes that run reward functions with deadlines and limits, outside the trainer.

    Workers start at the first use (or at `start()`), stay warm, and are killed and replaced when a call runs into its
    deadline or a limit. They end when the runtime is closed, garbage-collected, or the trainer ends, crashes or is
    killed. Thread-safe: several reward functions can use it at the same time. It can be pickled: the settings travel,
    the workers do not. A fork of the trainer starts its own workers.

    Args:
        workers: worker processes of this trainer process.
        deadline: seconds for one call of a reward function (one row, or one batch for functions that want batches);
            then the worker and everything it started is killed.
        load_deadline: seconds for a worker to start, and to import a reward function.
        memory_limit: bytes of address space of each process (RLIMIT_AS); beyond it the function gets a MemoryError.
            A worker whose processes together have twice that resident is killed (sampled every 50 ms).
        cpu_limit: CPU seconds of one call; None is `deadline` + 1.
        file_limit: bytes of one file written; the scratch folder holds twice that.
        process_limit: processes and threads' children that a worker may have at a time; beyond it, it is killed.
            Counted every 50 ms, because the kernel's own limit does not bind root.
        network: whether workers reach the network. Without it, variables of the environment whose names look like
            secrets (TOKEN, API_KEY, ...) are not passed on either.
        read_only: whether workers can write to no file outside a scratch folder, which is their working directory.
        namespaces: whether to use the kernel's namespaces; without them `network=False` and `read_only` can't be
            enforced, which is logged once.
        cache_size: results kept; 0 turns the cache off.

    Raises:
        ValueError: a limit is not positive.
    """

    def __init__(
        self,
        workers: int = 2,
        deadline: float = 10.0,
        *,
        load_deadline: float = 120.0,
        memory_limit: int = 4 << 30,
        cpu_limit: float | None = None,
        file_limit: int = 64 << 20,
        process_limit: int = 32,
        network: bool = False,
        read_only: bool = True,
        namespaces: bool = True,
        cache_size: int = 100_000,
    ) -> None:
        if isinstance(cache_size, bool) or not isinstance(cache_size, int) or cache_size < 0:
            raise ValueError(f"RewardRuntime: cache_size must be a whole number from 0, not {cache_size!r}.")
        self.settings = WorkerSettings(
            workers=workers,
            deadline=deadline,
            load_deadline=load_deadline,
            memory_limit=memory_limit,
            cpu_limit=cpu_limit,
            file_limit=file_limit,
            process_limit=process_limit,
            network=network,
            read_only=read_only,
            namespaces=namespaces,
        )
        self._cache_size = cache_size
        self._build()

    def _build(self) -> None:
        self._lock = threading.Lock()
        self._slots = [Slot(self.settings) for _ in range(self.settings.workers)]
        self._idle = list(self._slots)
        self._waiting: deque[Future[Slot]] = deque()
        self._closed = False
        self._counters: dict[str, Counter[str]] = {}
        self.cache = ResultCache(self._cache_size)
        self._finalizer = weakref.finalize(self, _stop_all, self._slots, os.getpid())
        _runtimes.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings, "_cache_size": self._cache_size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._build()

    def __enter__(self) -> "RewardRuntime":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(self) -> list[Capabilities]:
        """Start every worker that is not running, and wait until all are ready.

        Returns:
            The isolation of each.

        Raises:
            WorkerEnded: a worker can't start.
        """
        with contextlib.ExitStack() as stack:
            slots = [stack.enter_context(self._borrowed()) for _ in self._slots]
            for slot in slots:
                slot.start()
            return [slot.start().capabilities() for slot in slots]

    def close(self) -> None:
        """End every worker; calls that wait for one raise RuntimeError. Safe to call twice."""
        with self._lock:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
        for future in waiting:
            future.set_exception(RuntimeError("RewardRuntime is closed; make a new one."))
        _stop_all(self._slots, os.getpid())

    def pids(self) -> list[int]:
        """Return the process ids of the running workers' supervisors."""
        return [slot.worker.pid for slot in self._slots if slot.worker is not None]

    def count(self, name: str, **numbers: int) -> None:
        """Add to the counters of a reward function."""
        with self._lock:
            self._counters.setdefault(name, Counter()).update(numbers)

    def stats(self) -> dict[str, dict[str, int]]:
        """Return, for each reward function used, its rows, errors, timeouts, kills, skips and cache hits so far."""
        with self._lock:
            return {name: {key: counts[key] for key in COUNTERS} for name, counts in self._counters.items()}

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[Slot]:
        slot = self._borrow()
        try:
            yield slot
        finally:
            self._give_back(slot)

    def _borrow(self) -> Slot:
        with self._lock:
            if self._closed:
                raise RuntimeError("RewardRuntime is closed; make a new one.")
            if self._idle:
                return self._idle.pop()
            future: Future[Slot] = Future()
            self._waiting.append(future)
        return future.result()

    def _give_back(self, slot: Slot) -> None:
        # Handed to who has waited longest: a function with many rows must not keep others from their turn.
        with self._lock:
            # Closing has already answered those who wait.
            future = self._waiting.popleft() if self._waiting else None
            if future is None:
                self._idle.append(slot)
        if future is not None:
            future.set_result(slot)
        elif self._closed:
            slot.stop()

    def run(self, job: Job, stop: threading.Event | None = None) -> list[Outcome]:
        """Make the calls of a job, on as many workers as are free.

        Args:
            job: the calls.
            stop: set it when nobody wants the outcomes any more: no further call is made.

        Returns:
            One outcome per call, in order. A call that is killed does not touch the others.

        Raises:
            RewardLoadError: the function can't be loaded in a worker.
            SandboxUnavailable: the job wants a sandbox that the worker has not got.
            concurrent.futures.CancelledError: it was stopped.
        """
        return Run(job, self.settings, self._borrowed, stop).finish()


def _forget_in_fork() -> None:
    for runtime in list(_runtimes):
        for slot in runtime._slots:
            if slot.worker is not None:
                slot.worker.forget()
        runtime._finalizer.detach()
        runtime._build()


os.register_at_fork(after_in_child=_forget_in_fork)
_default_lock = threading.Lock()
_default: list[RewardRuntime] = []


def default_runtime() -> RewardRuntime:
    """Return the runtime that rewards without one of their own share: `RewardRuntime()`."""
    with _default_lock:
        if not _default:
            _default.append(RewardRuntime())
        return _default[0]

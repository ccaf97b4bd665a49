"""Making the calls of one reward function on the workers of a pool."""

import pickle
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from trl_grpo_ext.rewards.runtime.capabilities import unavailable_message, warn_downgrade
from trl_grpo_ext.rewards.runtime.errors import RewardLoadError, SandboxUnavailable, WorkerEnded
from trl_grpo_ext.rewards.runtime.functions import Shipment
from trl_grpo_ext.rewards.runtime.messages import DeadlineExceeded
from trl_grpo_ext.rewards.runtime.process import WorkerProcess
from trl_grpo_ext.rewards.runtime.settings import WorkerSettings
from trl_grpo_ext.rewards.runtime.slots import Slot

_LARGEST_CHUNK = 64
_GRACE = 0.25


@dataclass(frozen=True)
class Outcome:
    """What became of one call of a reward function.

    Args:
        kind: "ok", "error" (it raised), "timeout" (killed at the deadline) or "killed" (ended by a limit or a crash).
        reply: what the worker answered; not checked beyond being a JSON object.
        message: what went wrong, in a line or with a traceback.
    """

    kind: str
    reply: dict[str, Any] = field(default_factory=dict)
    message: str = ""

    @property
    def may_be_kept(self) -> bool:
        """Whether equal rows of later calls may get the same rewards without a call."""
        return self.kind == "ok" and not self.reply.keys() & {"state_read", "extra", "metrics"}


@dataclass(frozen=True)
class Job:
    """The calls of one reward function, and how to make them.

    Args:
        shipment: the function.
        calls: for each call, its arguments and the number of rewards expected.
        deadline: seconds per call.
        sandbox: whether each call runs in a throw-away fork of a fully isolated worker.
        allow_unsandboxed: whether the fork will do where isolation is not to be had.
        state: the trainer's state, pickled.
        wants_logs: whether to give the function `log_extra` and `log_metric`.
    """

    shipment: Shipment
    calls: Sequence[tuple[dict[str, Any], int]]
    deadline: float
    sandbox: bool = False
    allow_unsandboxed: bool = False
    state: bytes | None = None
    wants_logs: bool = False

    @property
    def patience(self) -> float:
        """Seconds until the worker itself is killed: a little more where it can end its fork and go on."""
        return self.deadline + (_GRACE if self.sandbox else 0.0)


class Run:
    """One job on its way through the pool.

    Args:
        job: the calls.
        settings: the pool's.
        borrow: gives a slot of the pool, and takes it back.
        stop: set when nobody wants the outcomes any more.
    """

    def __init__(
        self,
        job: Job,
        settings: WorkerSettings,
        borrow: Callable[[], AbstractContextManager[Slot]],
        stop: threading.Event | None = None,
    ) -> None:
        self._job = job
        self._stop = stop or threading.Event()
        self._settings = settings
        self._borrow = borrow
        self._outcomes: list[Outcome | None] = [None] * len(job.calls)
        size = max(1, min(_LARGEST_CHUNK, len(job.calls) // (4 * settings.workers)))
        self._chunks = deque(
            list(range(start, min(start + size, len(job.calls)))) for start in range(0, len(job.calls), size)
        )
        self._failures: list[BaseException] = []

    def finish(self) -> list[Outcome]:
        """Make the calls and return their outcomes, in order.

        Raises:
            RewardLoadError, SandboxUnavailable; CancelledError after `stop`.
        """
        feeders = min(self._settings.workers, len(self._chunks))
        threads = [threading.Thread(target=self._feed_safely, daemon=True) for _ in range(feeders - 1)]
        for thread in threads:
            thread.start()
        try:
            self._feed()
        finally:
            self._join(threads)
        if self._failures:
            raise self._failures[0]
        self._check_wanted()
        return [outcome for outcome in self._outcomes if outcome is not None]

    def _join(self, threads: Sequence[threading.Thread]) -> None:
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self._chunks.clear()
            raise

    def _feed_safely(self) -> None:
        try:
            self._feed()
        except BaseException as error:
            self._chunks.clear()
            self._failures.append(error)

    def _feed(self) -> None:
        try:
            while (chunk := self._next_chunk()) is not None:
                with self._borrow() as slot:
                    self._run_chunk(slot, chunk)
        except BaseException:
            self._chunks.clear()
            raise

    def _check_wanted(self) -> None:
        if self._stop.is_set():
            raise CancelledError("nobody waits for these rewards any more")

    def _next_chunk(self) -> list[int] | None:
        self._check_wanted()
        # Not `if self._chunks`: another thread may take the last one in between.
        try:
            return self._chunks.popleft()
        except IndexError:
            return None

    def _run_chunk(self, slot: Slot, chunk: list[int]) -> None:
        while chunk:
            chunk = chunk[self._run_until_kill(slot, self._begin(slot, chunk), chunk) :]

    def _begin(self, slot: Slot, chunk: list[int]) -> WorkerProcess:
        """Hand the chunk to a worker. One that has ended meanwhile, for no row's fault, is replaced once."""
        try:
            return self._prepare(slot.start(), chunk)
        except (WorkerEnded, DeadlineExceeded):
            slot.replace()
        except BaseException:
            slot.stop()
            raise
        try:
            return self._prepare(slot.start(), chunk)
        except (WorkerEnded, DeadlineExceeded) as error:
            slot.stop()
            raise RewardLoadError(
                f"Reward {self._job.shipment.name!r}: twice in a row a worker process did not start, load the function "
                f"or take its rows ({error or 'load_deadline is over'}); raise load_deadline or memory_limit of the "
                "RewardRuntime, or say in_process=True."
            ) from error

    def _prepare(self, worker: WorkerProcess, chunk: list[int]) -> WorkerProcess:
        capabilities = worker.capabilities()
        if capabilities.reasons:
            warn_downgrade(capabilities.reasons)
        if self._job.sandbox and not self._job.allow_unsandboxed and not capabilities.sandbox:
            raise SandboxUnavailable(unavailable_message(self._job.shipment.name, capabilities))
        worker.load(self._job.shipment)
        worker.begin(self._job.shipment, self._request(chunk))
        return worker

    def _run_until_kill(self, slot: Slot, worker: WorkerProcess, chunk: list[int]) -> int:
        """Return how many calls are done with: all, or those up to the one for which the worker was killed."""
        done = 0
        try:
            for reply in worker.replies(len(chunk), self._job.patience):
                self._outcomes[chunk[done]] = _outcome(reply, self._job)
                done += 1
                self._check_wanted()
            return done
        except DeadlineExceeded:
            self._outcomes[chunk[done]] = _timeout(self._job)
        except WorkerEnded as error:
            self._outcomes[chunk[done]] = Outcome("killed", message=f"its worker process is gone: {error.reason}")
        except BaseException:
            # Replies still to come belong to rows that nobody waits for.
            slot.stop()
            raise
        slot.replace()
        return done + 1

    def _request(self, chunk: list[int]) -> bytes:
        job, settings = self._job, self._settings
        request = {
            "kind": "rows",
            "version": job.shipment.version,
            "calls": [job.calls[index] for index in chunk],
            "cpu": settings.cpu_limit or job.deadline + 1,
            "fork": job.sandbox,
            "deadline": job.deadline,
            "state": job.state,
            "wants_logs": job.wants_logs,
        }
        return pickle.dumps(request)


def _timeout(job: Job) -> Outcome:
    return Outcome("timeout", message=f"killed at the deadline of {job.deadline:g} s")


def _outcome(reply: dict[str, Any], job: Job) -> Outcome:
    if "late" in reply:
        return _timeout(job)
    if "ended" in reply:
        return Outcome("killed", reply, str(reply["ended"]))
    if "error" not in reply:
        return Outcome("ok", reply)
    return Outcome("error", reply, f"{reply['error']}. In the worker:\n{reply.get('trace', '')}")

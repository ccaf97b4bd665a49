"""Making the calls of one reward function on the workers of a pool."""

import pickle
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from trl_grpo_ext.rewards.runtime.capabilities import unavailable_message, warn_downgrade
from trl_grpo_ext.rewards.runtime.errors import RewardLoadError, SandboxUnavailable, WorkerEnded
from trl_grpo_ext.rewards.runtime.functions import Shipment
from trl_grpo_ext.rewards.runtime.messages import DeadlineExceeded
from trl_grpo_ext.rewards.runtime.process import WorkerProcess
from trl_grpo_ext.rewards.runtime.settings import WorkerSettings

_LARGEST_CHUNK = 64


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


class Slot:
    """A place in the pool: a worker, and after its end the next one."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self.worker: WorkerProcess | None = None

    def start(self) -> WorkerProcess:
        """Return the worker, starting it where there is none."""
        if self.worker is None:
            self.worker = WorkerProcess(self._settings)
        return self.worker

    def replace(self) -> None:
        """Kill the worker, and let the next one start while others work."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """Kill the worker, if there is one."""
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.kill()


class Run:
    """One job on its way through the pool.

    Args:
        job: the calls.
        settings: the pool's.
        borrow: gives a slot of the pool, and takes it back.
    """

    def __init__(self, job: Job, settings: WorkerSettings, borrow: Callable[[], AbstractContextManager[Slot]]) -> None:
        self._job = job
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
            RewardLoadError, SandboxUnavailable.
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

    def _next_chunk(self) -> list[int] | None:
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
            for reply in worker.replies(len(chunk), self._job.deadline):
                self._outcomes[chunk[done]] = _outcome(reply)
                done += 1
            return done
        except DeadlineExceeded:
            message = f"killed at the deadline of {self._job.deadline:g} s"
            self._outcomes[chunk[done]] = Outcome("timeout", message=message)
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
            "state": job.state,
            "wants_logs": job.wants_logs,
        }
        return pickle.dumps(request)


def _outcome(reply: dict[str, Any]) -> Outcome:
    if "error" not in reply:
        return Outcome("ok", reply)
    return Outcome("error", reply, f"{reply['error']}. In the worker:\n{reply.get('trace', '')}")

"""The places of a pool."""

from trl_grpo_ext.rewards.runtime.process import WorkerProcess
from trl_grpo_ext.rewards.runtime.settings import WorkerSettings


class Slot:
    """A place in the pool: a worker, and after its end the next one."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._closed = False
        self.worker: WorkerProcess | None = None

    def start(self) -> WorkerProcess:
        """Return the worker, starting it where there is none.

        Raises:
            RuntimeError: the slot is closed.
        """
        if self._closed:
            raise RuntimeError("RewardRuntime is closed; make a new one.")
        if self.worker is None:
            self.worker = WorkerProcess(self._settings)
        return self.worker

    def replace(self) -> None:
        """Kill the worker, and let the next one start while others work."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Kill the worker and start none again, whatever thread may still ask for it."""
        self._closed = True
        self.stop()

    def stop(self) -> None:
        """Kill the worker, if there is one."""
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.kill()

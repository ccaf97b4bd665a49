"""What goes wrong between a trainer and its reward workers."""


class RewardLoadError(RuntimeError):
    """A reward function can't be loaded, or its rows can't be read, in a worker: its import fails there, for example."""


class SandboxUnavailable(RuntimeError):
    """A reward asks for a sandbox that this machine or these settings can't give."""


class WorkerEnded(Exception):
    """A worker ended by itself, by a limit, or by the kernel's choice. `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

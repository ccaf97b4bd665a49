"""The limits of a worker, checked once."""

import math
from dataclasses import dataclass

_POSITIVE = ("workers", "deadline", "load_deadline", "memory_limit", "file_limit", "process_limit")


@dataclass(frozen=True)
class WorkerSettings:
    """What a pool's workers may use. `RewardRuntime` documents each field.

    Raises:
        ValueError: a limit is not positive and finite.
    """

    workers: int = 2
    deadline: float = 10.0
    load_deadline: float = 120.0
    memory_limit: int = 4 << 30
    cpu_limit: float | None = None
    file_limit: int = 64 << 20
    process_limit: int = 32
    network: bool = False
    read_only: bool = True
    namespaces: bool = True

    def __post_init__(self) -> None:
        for name in _POSITIVE + (("cpu_limit",) if self.cpu_limit is not None else ()):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"RewardRuntime: {name} must be a positive number, not {value!r}.")
            if name not in ("deadline", "load_deadline", "cpu_limit") and not isinstance(value, int):
                raise ValueError(f"RewardRuntime: {name} must be a whole number, not {value!r}.")

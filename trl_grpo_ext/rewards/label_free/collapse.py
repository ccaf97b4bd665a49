"""When has a run collapsed? The pseudo-reward rises while the accuracy on labelled canaries falls."""

from collections import deque
from statistics import fmean
from typing import Any


def _check(window: int, patience: int, min_rise: float, min_drop: float) -> None:
    for name, count in {"window": window, "patience": patience}.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"collapse guard: {name} must be a whole number of at least 1, not {count!r}.")
    if not min_rise >= 0:
        raise ValueError(f"collapse guard: min_rise must be a number from 0, not {min_rise!r}.")
    if not min_drop > 0:
        raise ValueError(f"collapse guard: min_drop must be a number above 0, not {min_drop!r}.")


class CollapseDetector:
    """Compares windowed means with those at the best point so far.

    With P_t and C_t the means of the last `window` pseudo-rewards and canary accuracies, and b the moment of the
    highest C so far (the first of equal ones): step t is an alarm if C_t <= C_b - min_drop and P_t >= P_b + min_rise.
    The first alarm is a warning; `patience` alarms in a row are a collapse, and one step without alarm starts the
    count again. A drop alone, without a rise, is a run that fails in another way, and no alarm.

    Args:
        window: measurements per mean; 20 by default. Before it is full nothing is decided.
        min_rise: by how much the pseudo-reward must have risen, in its own unit; 0.05 by default, and 0 asks only that
            it has not fallen, for runs that begin with a pseudo-reward near its maximum.
        min_drop: by how much canary accuracy must have fallen; 0.05 by default. With n canary completions per
            measurement its noise is about sqrt(0.25 / (n * window)): keep `min_drop` above twice that.
        patience: 5 by default.

    Attributes:
        alarms: alarms in a row, up to now.
        means: windowed canary accuracy and pseudo-reward of the last full window; None before the first.

    Raises:
        ValueError: `window` or `patience` below 1, `min_rise` below 0, `min_drop` not above 0.
    """

    def __init__(self, window: int = 20, min_rise: float = 0.05, min_drop: float = 0.05, patience: int = 5) -> None:
        _check(window, patience, min_rise, min_drop)
        self.min_rise, self.min_drop, self.patience = min_rise, min_drop, patience
        self.alarms = 0
        self._pseudo: deque[float] = deque(maxlen=window)
        self._canary: deque[float] = deque(maxlen=window)
        self.means: tuple[float, float] | None = None
        self._best: tuple[float, float] | None = None

    def observe(self, pseudo: float, canary: float) -> bool:
        """Take one measurement; return whether the run has collapsed by now."""
        self._pseudo.append(pseudo)
        self._canary.append(canary)
        if len(self._canary) < (self._canary.maxlen or 0):
            return False
        self.means = now = fmean(self._canary), fmean(self._pseudo)
        if self._best is None or now[0] > self._best[0]:
            self._best = now
        fell = now[0] <= self._best[0] - self.min_drop
        rose = now[1] >= self._best[1] + self.min_rise
        self.alarms = self.alarms + 1 if fell and rose else 0
        return self.alarms >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements in the window, the best point and the alarms."""
        windows = {"pseudo": list(self._pseudo), "canary": list(self._canary)}
        return windows | {"alarms": self.alarms, "means": self.means, "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with them; a shorter window keeps the newest."""
        self._pseudo = deque(state["pseudo"], self._pseudo.maxlen)
        self._canary = deque(state["canary"], self._canary.maxlen)
        self.alarms, self.means, self._best = state["alarms"], state["means"], state["best"]

    @property
    def best_canary(self) -> float | None:
        """The highest windowed canary accuracy so far; None before the first full window."""
        return None if self._best is None else self._best[0]

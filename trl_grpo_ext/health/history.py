"""The metrics of a run as series. Standard library only."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, variance
from typing import Any


@dataclass(frozen=True)
class Point:
    """A value and the optimizer step at which it was logged."""

    step: int
    value: float


class History:
    """The entries of `trainer.state.log_history`, by name, taken one after the other; what is no number is left out.

    NaN is the latest value of its series, and no part of it otherwise. A window at the beginning or at the end costs
    what the window costs, however long the run is.

    Args:
        entries: dictionaries with `step`, in their order.
    """

    def __init__(self, entries: Iterable[Mapping[str, Any]] = ()) -> None:
        self._steps: dict[str, list[int]] = {}
        self._values: dict[str, list[float]] = {}
        self._latest: dict[str, float] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Take one more entry."""
        for name, value in entry.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            self._latest[name] = float(value)
            if not math.isnan(value):
                self._steps.setdefault(name, []).append(int(entry.get("step", 0)))
                self._values.setdefault(name, []).append(float(value))

    def names(self) -> list[str]:
        """Return the names of all series."""
        return list(self._latest)

    def points(self, name: str) -> list[Point]:
        """Return a series."""
        return [Point(*item) for item in zip(self._steps.get(name, ()), self.values(name), strict=True)]

    def values(self, name: str) -> Sequence[float]:
        """Return the values of a series."""
        return self._values.get(name, [])

    def latest(self, name: str) -> float | None:
        """Return the last value of a series, NaN included; None without one."""
        return self._latest.get(name)

    def last_mean(self, name: str, count: int) -> float | None:
        """Return the mean of the last `count` values; None with fewer."""
        values = self.values(name)
        return fmean(values[-count:]) if len(values) >= count else None

    def first_mean(self, name: str, count: int) -> float | None:
        """Return the mean of the first `count` values; None with fewer."""
        values = self.values(name)
        return fmean(values[:count]) if len(values) >= count else None

    def mean_up_to(self, name: str, step: int, count: int) -> float | None:
        """Return the mean of the last `count` values up to a step, of fewer where there are fewer; None without any."""
        end = bisect_right(self._steps.get(name, []), step)
        values = self.values(name)[max(0, end - count) : end]
        return fmean(values) if values else None


def has_risen(values: Sequence[float], early: int = 10, late: int = 20, errors: float = 2.0) -> bool:
    r"""Return whether the mean of the last `late` values is above that of the first `early` ones, beyond noise.

    m_late - m_early > errors * sqrt(s_early^2 / n_early + s_late^2 / n_late), Welch's standard error.

    Args:
        values: at least `early` + 2 of them; of fewer than `early` + `late`, the late ones are those that are left.
        early: how many count as the beginning.
        late: how many count as the end.
        errors: standard errors that a rise must have.
    """
    first, last = values[:early], values[max(early, len(values) - late) :]
    if len(first) < 2 or len(last) < 2:
        return False
    noise = sqrt(variance(first) / len(first) + variance(last) / len(last))
    return fmean(last) - fmean(first) > errors * noise

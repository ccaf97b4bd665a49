"""The metrics of a run as series. Standard library only."""

from __future__ import annotations

import math
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
    """The entries of `trainer.state.log_history`, by name; what is no number is left out, NaN is kept.

    Args:
        entries: dictionaries with `step`.
    """

    def __init__(self, entries: Iterable[Mapping[str, Any]]) -> None:
        self._series: dict[str, list[Point]] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Take one more entry."""
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                self._series.setdefault(name, []).append(Point(int(entry.get("step", 0)), float(value)))

    def names(self) -> list[str]:
        """Return the names of all series."""
        return list(self._series)

    def points(self, name: str) -> list[Point]:
        """Return a series, without NaN."""
        return [point for point in self._series.get(name, ()) if not math.isnan(point.value)]

    def values(self, name: str) -> list[float]:
        """Return the values of a series, without NaN."""
        return [point.value for point in self.points(name)]

    def latest(self, name: str) -> float | None:
        """Return the last value of a series, NaN included; None without one."""
        series = self._series.get(name)
        return series[-1].value if series else None

    def last_mean(self, name: str, count: int) -> float | None:
        """Return the mean of the last `count` values; None with fewer."""
        values = self.values(name)
        return fmean(values[-count:]) if len(values) >= count else None

    def first_mean(self, name: str, count: int) -> float | None:
        """Return the mean of the first `count` values; None with fewer."""
        values = self.values(name)
        return fmean(values[:count]) if len(values) >= count else None


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

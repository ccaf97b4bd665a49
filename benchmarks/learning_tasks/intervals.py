"""Means, 95 % intervals, comparisons with the baseline, and the goals. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from learning_tasks.arms import BASELINE

# 0.975 quantile of Student's t for 1 to 9 degrees of freedom.
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
MOST_SEEDS = len(T_975) + 1
LARGEST_CONTROL_GAIN = 0.05

Row = Mapping[str, Any]


def t_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    r"""Mean and its 95 % t interval, m -+ t_{0.975, n-1} s / sqrt(n) with s of ddof 1; no interval for one value.

    Raises:
        ValueError: no value, or more than 10.
    """
    if not 1 <= len(values) <= MOST_SEEDS:
        raise ValueError(f"t_interval takes 1 to {MOST_SEEDS} values, not {len(values)}.")
    mean = fmean(values)
    if len(values) == 1:
        return mean, None, None
    half = T_975[len(values) - 2] * stdev(values) / sqrt(len(values))
    return mean, mean - half, mean + half


def verdict(low: float | None, high: float | None) -> str:
    """What the interval of a difference says."""
    if low is None or high is None:
        return "one seed"
    return "better" if low > 0 else "worse" if high < 0 else "no difference shown"


def by_seed(rows: Sequence[Row], task: str, arm: str, control: str = "none") -> dict[int, Row]:
    """The runs of one arm, by seed."""
    wanted = (task, arm, control)
    return {row["seed"]: row for row in rows if (row["task"], row["arm"], row["control"]) == wanted}


def compare(rows: Sequence[Row], task: str, arm: str, control: str, metric: str) -> dict[str, Any]:
    """Mean of the arm after training, and of its difference from TRL's default of the same seed, with intervals."""
    own, base = by_seed(rows, task, arm, control), by_seed(rows, task, BASELINE)
    seeds, after = sorted(own.keys() & base.keys()), f"{metric}_end"
    result: dict[str, Any] = {"kind": "comparison", "task": task, "arm": arm, "control": control, "metric": metric}
    result |= {"seeds": len(seeds), "mean_steps": round(fmean(own[seed]["steps"] for seed in seeds), 1)}
    columns = {
        "start": [own[seed][f"{metric}_start"] for seed in seeds],
        "end": [own[seed][after] for seed in seeds],
        "difference": [own[seed][after] - base[seed][after] for seed in seeds],
    }
    for name, values in columns.items():
        figures = t_interval(values)
        rounded = [figure if figure is None else round(figure, 4) for figure in figures]
        result |= dict(zip((name, f"{name}_low", f"{name}_high"), rounded, strict=True))
    is_baseline = (arm, control) == (BASELINE, "none")
    return result | {"verdict": "baseline" if is_baseline else verdict(*t_interval(columns["difference"])[1:])}


def comparisons(rows: Sequence[Row], metrics: Mapping[str, str]) -> list[dict[str, Any]]:
    """One comparison per task, arm and control, in the order of the runs; arms without the baseline's seeds are left out.

    Args:
        rows: the runs.
        metrics: the compared figure of each task.
    """
    wanted = dict.fromkeys((row["task"], row["arm"], row["control"]) for row in rows)
    ordered = sorted(wanted, key=lambda key: (list(metrics).index(key[0]), key[2] != "none"))
    return [
        compare(rows, task, arm, control, metrics[task])
        for task, arm, control in ordered
        if by_seed(rows, task, arm, control).keys() & by_seed(rows, task, BASELINE).keys()
    ]


def _gains(rows: Sequence[Row], task: str, control: str, metric: str) -> list[float]:
    runs = by_seed(rows, task, BASELINE, control).values()
    return [row[f"{metric}_end"] - row[f"{metric}_start"] for row in runs]


def goals(rows: Sequence[Row], metrics: Mapping[str, str]) -> list[dict[str, Any]]:
    """TRL's default learns, and neither control does: of each, the gain over the start. A missing run misses its goal."""
    found = []
    for task, metric in metrics.items():
        for control, text in (("none", "> 0"), ("shuffled", f"<= {LARGEST_CONTROL_GAIN}"), ("flipped", "< 0")):
            gains = _gains(rows, task, control, metric)
            mean, low, _ = t_interval(gains) if gains else (None, None, None)
            is_bound = control == "none" and low is not None
            value = low if is_bound else mean
            what = "lower end of the interval of the gain" if is_bound else "mean gain"
            found.append(
                {
                    "name": f"{task}: {what} in {metric}, {_LABELS[control]}",
                    "goal": text,
                    "value": value if value is None else round(value, 4),
                    "met": value is not None and _REACHED[control](value),
                }
            )
    return found


_LABELS = {"none": "TRL's default", "shuffled": "shuffled rewards", "flipped": "flipped rewards"}
_REACHED = {
    "none": lambda value: value > 0,
    "shuffled": lambda value: value <= LARGEST_CONTROL_GAIN,
    "flipped": lambda value: value < 0,
}

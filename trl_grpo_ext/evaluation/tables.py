"""Evaluations as tables of plain Markdown. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trl_grpo_ext.evaluation.intervals import Difference, Estimate
from trl_grpo_ext.evaluation.results import Evaluation, compare


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are padded to be read as text too."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def interval_text(low: float | None, high: float | None, sign: str = "") -> str:
    """Return an interval as `0.120 to 0.340`, or "none" where one problem gives none."""
    return "none" if low is None or high is None else f"{low:{sign}.3f} to {high:{sign}.3f}"


def estimates_table(estimates: Mapping[str, Estimate], level: float = 0.95) -> str:
    """Return one line per metric: mean over problems, interval, problems."""
    rows = [
        [name, f"{item.value:.3f}", interval_text(item.low, item.high), str(item.problems)]
        for name, item in estimates.items()
    ]
    return table(["metric", "mean", f"{level:.0%} interval", "problems"], rows)


def differences_table(differences: Mapping[str, Difference], level: float = 0.95) -> str:
    """Return one line per metric: difference, its interval, problems better and worse, p value."""
    rows = [
        [
            name,
            f"{item.value:+.3f}",
            interval_text(item.low, item.high, "+"),
            f"{item.better}/{item.worse}/{item.problems}",
            f"{item.p_value:.3g}",
        ]
        for name, item in differences.items()
    ]
    return table(["metric", "difference", f"{level:.0%} interval", "better/worse/problems", "p"], rows)


def two_by_two(cells: Mapping[tuple[bool, bool], Evaluation], metric: str, level: float = 0.95) -> str:
    """Return the table of one metric: trained with/without experiences x answered with/without them.

    The last column is what experiences in the prompt change for a model, the last line what training with them
    changes; both are paired by problem.

    Args:
        cells: (trained with, answered with) -> its evaluation, all four on the same problems.
        metric: such as `exact_match/pass@1`.
        level: confidence of the intervals.

    Raises:
        ValueError: a cell is missing, or has not this metric.
        SamplesError: two cells share no problem.
    """
    wanted = [(trained, answered) for trained in (False, True) for answered in (False, True)]
    for key in wanted:
        if key not in cells or metric not in cells[key].values:
            raise ValueError(f"two_by_two: the cell (trained, answered with experiences)={key} has no {metric!r}.")
    rows = []
    for trained in (False, True):
        estimates = [cells[trained, answered].estimates(level)[metric] for answered in (False, True)]
        gain = compare(cells[trained, True], cells[trained, False], level)[metric]
        figures = [f"{item.value:.3f} ({interval_text(item.low, item.high)})" for item in estimates]
        rows.append([f"trained {_with(trained)}", *figures, _change(gain)])
    training = [compare(cells[True, answered], cells[False, answered], level)[metric] for answered in (False, True)]
    rows.append(["change by training with", *map(_change, training), ""])
    header = [metric, "answered without", "answered with", "change by answering with"]
    return table(header, rows)


def _with(used: bool) -> str:
    return "with" if used else "without"


def _change(item: Difference) -> str:
    return f"{item.value:+.3f} ({interval_text(item.low, item.high, '+')})"

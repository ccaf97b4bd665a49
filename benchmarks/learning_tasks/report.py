"""The figures as text, as the README's table, as CSV and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from learning_tasks.intervals import Row

LABELS = {"addition": "addition: greedy accuracy", "stories": "stories: reward (at most 1.5)"}


def interval(row: Row, name: str, form: str = ".3f") -> str:
    """`mean (low to high)`, or the mean alone."""
    mean, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{mean:{form}}" + (f" ({low:{form}} to {high:{form}})" if low is not None else "")


def label(arm: str, control: str) -> str:
    """How a row of the table is called."""
    return f"`{arm}`" + ("" if control == "none" else f", {control} rewards")


def _of(document: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    return [row for row in document["results"] if row["kind"] == kind]


def _cells(row: Row | None) -> list[str]:
    if row is None:
        return ["not run", ""]
    if row["verdict"] == "baseline":
        return [interval(row, "end"), "baseline"]
    difference = interval(row, "difference", "+.3f")
    bold = row["verdict"] in ("better", "worse") and row["control"] == "none"
    return [interval(row, "end"), f"**{row['verdict']}** {difference}" if bold else difference]


def _starts(rows: Sequence[Row], tasks: Sequence[str]) -> list[str]:
    base = {row["task"]: row for row in rows if row["verdict"] == "baseline"}
    return [
        cell for task in tasks for cell in ([interval(base[task], "start"), ""] if task in base else ["not run", ""])
    ]


def caption(environment: Mapping[str, Any]) -> str:
    """What the table's figures are, in a paragraph."""
    seeds = environment["seeds"]
    many = f"Means over {seeds} seeds with 95 % t intervals; differences are paired by seed."
    return (
        f"Held-out figures after {environment['cpu_seconds']:g} CPU seconds of training per run, with "
        f"{environment['line']}. {many if seeds > 1 else 'One seed: no interval.'} Bold: the interval of the "
        "difference lies on one side of 0. Each interval stands alone: among 20 of them, one is expected to miss 0 by "
        "chance. `@2` is num_iterations 2."
    )


def readme_table(document: Mapping[str, Any]) -> str:
    """The table of the README, in Markdown, made of the written file alone."""
    rows, tasks = _of(document, "comparison"), document["environment"]["tasks"]
    found = {(row["task"], row["arm"], row["control"]): row for row in rows}
    header = ["preset", *(cell for task in tasks for cell in (LABELS[task], "against TRL's default"))]
    lines = [header, ["---"] * len(header), ["before training", *_starts(rows, tasks)]]
    for arm, control in dict.fromkeys((row["arm"], row["control"]) for row in rows):
        lines.append([label(arm, control), *(c for task in tasks for c in _cells(found.get((task, arm, control))))])
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", caption(document["environment"])])


def run_line(row: Row, metric: str) -> str:
    """One finished run as one line."""
    name = row["arm"] + ("" if row["control"] == "none" else f" ({row['control']})")
    return (
        f"{row['task']:<9} {name:<18} seed {row['seed']}: {metric} {row[f'{metric}_start']:.3f} -> "
        f"{row[f'{metric}_end']:.3f}, {row['steps']} steps, {row['cpu_seconds']:.1f} CPU s"
    )


def comparison_line(row: Row) -> str:
    """One comparison as one line."""
    name = row["arm"] + ("" if row["control"] == "none" else f" ({row['control']})")
    return (
        f"{row['task']:<9} {name:<18} {interval(row, 'end'):<26} difference {interval(row, 'difference', '+.3f'):<28} "
        f"{row['verdict']}"
    )


def write_csv(path: Path, document: Mapping[str, Any]) -> None:
    """One line per run; figures that a task does not have stay empty."""
    rows = [{key: value for key, value in row.items() if key not in ("kind", "curve")} for row in _of(document, "run")]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def curves(document: Mapping[str, Any], task: str) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Mean over the seeds of the held-out figure at each share of the CPU seconds, per arm and control."""
    found: dict[tuple[str, str], list[list[tuple[float, float]]]] = {}
    for row in _of(document, "run"):
        if row["task"] == task:
            found.setdefault((row["arm"], row["control"]), []).append(row["curve"])
    return {
        key: [(points[0][0], fmean(value for _, value in points)) for points in zip(*runs, strict=True)]
        for key, runs in found.items()
    }


def plot(path: Path, document: Mapping[str, Any]) -> None:
    """Held-out figure over CPU seconds as a PNG, one panel per task; controls dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    environment = document["environment"]
    title = f"mean of {environment['seeds']} seeds" if environment["seeds"] > 1 else "one seed"
    figure, panels = plt.subplots(
        1, len(environment["tasks"]), figsize=(6 * len(environment["tasks"]), 5), squeeze=False
    )
    for panel, task in zip(panels[0], environment["tasks"], strict=True):
        colours = iter(plt.get_cmap("tab20").colors)
        for (arm, control), points in curves(document, task).items():
            seconds = [share * environment["cpu_seconds"] for share, _ in points]
            style = "-" if control == "none" else "--"
            name = label(arm, control).replace("`", "")
            panel.plot(seconds, [value for _, value in points], style, color=next(colours), label=name)
        panel.set(xlabel="CPU seconds of training", ylabel=LABELS[task], title=title)
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)

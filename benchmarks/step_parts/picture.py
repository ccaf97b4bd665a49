"""The figures as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from step_parts.goals import line, scaling
from step_parts.phases import PHASES
from step_parts.report import place

Row = Mapping[str, Any]
COLOURS = {"stock": "tab:orange", "ours": "tab:blue"}


def draw(path: Path, document: Row) -> None:
    """A PNG: the updates against their limit, the cost of the completions, and the phases of the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = document["results"]
    figure, panels = plt.subplots(1, 3, figsize=(17, 5.5))
    _updates(panels[0], [row for row in rows if row["part"] == "update"])
    _scaling(panels[1], rows)
    _steps(panels[2], [row for row in rows if row["part"] == "step"], plt.get_cmap("tab10").colors)
    environment = document["environment"]
    figure.suptitle(f"TRL {environment['trl']}, {environment['device']}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _updates(panel: Any, rows: Sequence[Row]) -> None:
    names = [place(row) for row in rows]
    panel.barh(names, [row["limit"] for row in rows], color="lightgrey", label="FLOP limit of the shared form")
    panel.barh(names, [row["speedup"] for row in rows], height=0.4, color=COLOURS["ours"], label="measured")
    panel.axvline(1.0, color=COLOURS["stock"], label="stock TRL")
    panel.invert_yaxis()
    panel.tick_params(axis="y", labelsize=7)
    panel.set(xlabel="times faster than stock", title="update: forward and backward")
    if rows:
        panel.legend(fontsize=7)


def _scaling(panel: Any, rows: Sequence[Row]) -> None:
    for arm, colour in COLOURS.items():
        for length, points in scaling(rows, arm).items():
            counts, costs = zip(*points, strict=True)
            label = f"{arm}, {length} tokens each"
            panel.plot(counts, costs, "o" if length > 8 else "s", color=colour, label=label, mfc="none")
            if len(points) > 1:
                intercept, slope = line(points)
                panel.plot(counts, [intercept + slope * count for count in counts], color=colour, lw=0.8)
    prompt = next((row["prompt"] for row in rows if row["part"] == "scaling"), None)
    panel.set(xlabel="completions of one prompt", ylabel="seconds", title=f"one prompt of {prompt} tokens, its update")
    panel.set_ylim(bottom=0)
    if prompt:
        panel.legend(fontsize=7)


def _steps(panel: Any, rows: Sequence[Row], colours: Sequence[Any]) -> None:
    names = [f"{place(row)}: {arm}" for row in rows for arm in COLOURS]
    whole = [row["stock"]["seconds"] for row in rows for _ in COLOURS]
    left = [0.0] * len(names)
    for phase, colour in zip(PHASES, colours, strict=False):
        costs = [row[arm]["phases"][phase] for row in rows for arm in COLOURS]
        shares = [cost / total for cost, total in zip(costs, whole, strict=True)]
        panel.barh(names, shares, left=left, color=colour, label=phase)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    panel.invert_yaxis()
    panel.tick_params(axis="y", labelsize=6)
    panel.set(xlabel="share of stock's seconds", title="a whole step with HF generate")
    if rows:
        panel.legend(fontsize=7)

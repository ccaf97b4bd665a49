"""The panels of the report as PNG files, by matplotlib: beside LLaMA-Factory's `training_loss.png`, and without it."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trl_grpo_ext.report.charts import COLOURS, Series, panel_names, series
from trl_grpo_ext.report.run_files import load_run

Drawn = dict[str, Series]


def file_name(title: str) -> str:
    """Return the name of a panel's file, such as `grpo_share_of_completions_cut_off.png`."""
    return f"grpo_{re.sub(r'[^a-z0-9]+', '_', title.lower()).strip('_')}.png"


def write_pictures(folder: str | Path, control: str | Path | None = None) -> list[Path]:
    """Write one PNG per panel of the report into the folder of a run, and return their paths.

    Args:
        folder: output folder of the run.
        control: output folder of a control run, whose curves are drawn dotted; none by default.

    Raises:
        RunError: a folder without a saved run.
        ImportError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("the pictures need matplotlib: pip install 'trl-grpo-ext[report]'")
    run = series(load_run(folder).history)
    other = series(load_run(control).history) if control is not None else {}
    return [_picture(Path(folder), title, names, run, other) for title, names in panel_names(run).items()]


def _picture(folder: Path, title: str, names: list[str], run: Drawn, control: Drawn) -> Path:
    from matplotlib.figure import Figure

    # A figure of its own: pyplot would ask for a display, and keep every figure.
    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for name, colour in zip(names, COLOURS, strict=False):
        _lines(axes, name, colour, run, control)
    axes.set(title=title, xlabel="step")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path = folder / file_name(title)
    figure.savefig(path)
    return path


def _lines(axes: Any, name: str, colour: str, run: Drawn, control: Drawn) -> None:
    axes.plot(*run[name], color=colour, label=name, marker="." if len(run[name][0]) < 20 else None)
    if name in control:
        axes.plot(*control[name], color=colour, label=f"{name} (control)", linestyle=":")
    if {f"{name}_low", f"{name}_high"} <= set(run):
        (steps, low), (_, high) = run[f"{name}_low"], run[f"{name}_high"]
        if len(low) == len(high):
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)

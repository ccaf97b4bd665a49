"""The figures as lines, and as the README's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from step_parts.goals import seconds
from step_parts.phases import PHASES

Row = Mapping[str, Any]


def place(row: Row) -> str:
    """`model (P, C, G)`, and what is unusual about it."""
    unusual = f", micro-batch {row['rows']}" if row["rows"] != row["group"] else ""
    unusual += f", {row['layers']} layers" if row["layers"] else ""
    return f"{row['model']} ({row['prompt']}, {row['completion']}, {row['group']}){unusual}"


def line(row: Row) -> str:
    """One point as one line."""
    spread = "" if row["spread"] is None else f" ±{row['spread'] / 2:.0%}"
    return (
        f"{row['part']:<8} {place(row):<44} stock {seconds(row, 'stock'):8.3f} s  ours {seconds(row, 'ours'):8.3f} s  "
        f"x{row['speedup']:.2f}{spread} of {row['limit']:.2f} ({row['share_of_limit']:.0%})  "
        f"memory {row['memory_ratio']:.2f}"
    )


def phase_lines(row: Row) -> list[str]:
    """The phases of a whole step: seconds and operations, stock and ours."""
    stock, ours = (row[arm] for arm in ("stock", "ours"))
    return [
        f"         {name:<13} {stock['phases'][name]:8.3f} s {ours['phases'][name]:8.3f} s   "
        f"{stock['flops'][name] / 1e9:10.1f} GFLOP {ours['flops'][name] / 1e9:10.1f} GFLOP"
        for name in PHASES
    ]


def goal_line(goal: Row) -> str:
    """One goal as one line."""
    verdict = "met" if goal["met"] else "UNMET"
    return f"{goal['name']}: {goal['value']:.3g} ({goal['rule']} {goal['goal']:g}): {verdict}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


def _megabytes(row: Row, arm: str) -> str:
    return f"{row[arm]['peak_bytes'] / 2**20:.0f}"


def update_table(rows: Sequence[Row]) -> str:
    """Forward and backward of one micro-batch."""
    header = ["model (P, C, G)", "stock s", "ours s", "speed-up", "FLOP limit", "share", "stock MiB", "ours MiB"]
    return table(
        header,
        [
            [
                *(place(row), f"{seconds(row, 'stock'):.2f}", f"{seconds(row, 'ours'):.2f}"),
                *(f"{row['speedup']:.2f}", f"{row['limit']:.2f}", f"{row['share_of_limit']:.0%}"),
                *(_megabytes(row, "stock"), _megabytes(row, "ours")),
            ]
            for row in rows
        ],
    )


def step_table(rows: Sequence[Row]) -> str:
    """A whole step, phase by phase, `stock / ours`."""
    header = ["model (P, C, G)", *PHASES, "all", "speed-up", "of", "peak MiB"]
    lines = []
    for row in rows:
        stock, ours = (row[arm]["phases"] for arm in ("stock", "ours"))
        cells = [f"{stock[name]:.2f} / {ours[name]:.2f}" for name in PHASES]
        cells += [f"{seconds(row, 'stock'):.2f} / {seconds(row, 'ours'):.2f}"]
        cells += [f"**{row['speedup']:.2f}**", f"{row['limit']:.2f}"]
        lines.append([place(row), *cells, f"{_megabytes(row, 'stock')} / {_megabytes(row, 'ours')}"])
    return table(header, lines)


def caption(environment: Row) -> str:
    """What the tables show."""
    return (
        f"TRL {environment['trl']}, transformers {environment['transformers']}, torch {environment['torch']}; "
        f"{environment['device']}; {environment['clock']}. P prompt tokens, C tokens of the longest completion (the "
        "shortest has a quarter), G completions. `toy` is a Qwen2 of 4 layers, width 256 and 32768 tokens; "
        "`half_billion` has layers and vocabulary of Qwen2.5-0.5B, but 2 of its 24 layers, so that the head weighs "
        "more than in the whole model. The limit of an update is the arithmetic that stock does over that of the "
        "shared form; the limit of a step is what is left of stock's seconds with a prefill of one prompt and an "
        "update at its limit. Memory is the peak above weights, gradients and optimizer (update), or above weights "
        "and optimizer (step)."
    )


def readme_table(document: Row) -> str:
    """The README's part, made of the written file alone."""
    rows, parts = document["results"], []
    for part, make in (("update", update_table), ("step", step_table)):
        chosen = [row for row in rows if row["part"] == part]
        if chosen:
            parts.append(make(chosen))
    parts.append(caption(document["environment"]))
    verdicts = [
        [
            goal["name"],
            f"{goal['rule']} {goal['goal']:g}",
            f"{goal['value']:.3g}",
            "met" if goal["met"] else "**unmet**",
        ]
        for goal in document["goals"]
    ]
    return "\n\n".join([*parts, table(["goal", "bound", "measured", ""], verdicts)])

"""The lines of the issue, as far as the measured points go."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

from step_parts.models import FULL_DEPTH
from step_parts.points import LONG, SHORT

Row = dict[str, Any]
_HOLDS = {"at most": operator.le, "at least": operator.ge}


def goal(name: str, rule: str, bound: float, value: float) -> Row:
    """One goal; `rule` is "at most" or "at least"."""
    return {"name": name, "rule": rule, "goal": bound, "value": value, "met": _HOLDS[rule](value, bound)}


def seconds(row: Row, arm: str) -> float:
    """Forward and backward of an update, or a whole step."""
    costs = row[arm]
    return costs["seconds"] if "seconds" in costs else costs["forward"] + costs["backward"]


def at(rows: Sequence[Row], part: str, shape: tuple[int, int, int]) -> dict[str, Row]:
    """By model: the rows of a part at one point of the grid, the whole group in one micro-batch, layers as usual."""
    return {
        row["model"]: row
        for row in rows
        if (row["part"], row["prompt"], row["completion"], row["group"]) == (part, *shape)
        and row["rows"] == row["group"]
        and row["layers"] is None
    }


def goals(rows: Sequence[Row]) -> list[Row]:
    """Those whose points are there."""
    found = [*_gradients(rows), *_shares(rows), *_full_depth(rows), *_scaling(rows)]
    for part in ("update", "step"):
        for model, row in at(rows, part, SHORT).items():
            found.append(goal(f"{part} speed at {SHORT}, {model}", "at least", 0.97, row["speedup"]))
    for model, row in at(rows, "step", LONG).items():
        found.append(goal(f"step speed at {LONG}, {model}", "at least", 2.0, row["speedup"]))
        name = f"peak memory above weights and optimizer at {LONG}, {model}"
        found.append(goal(name, "at most", 0.4, row["memory_ratio"]))
    return found


def _gradients(rows: Sequence[Row]) -> list[Row]:
    seen = [row["gradient_difference"] for row in rows if "gradient_difference" in row]
    bound = 0.1 if torch.cuda.is_available() else 1e-5
    return [goal("largest relative difference of a gradient", "at most", bound, max(seen))] if seen else []


def _shares(rows: Sequence[Row]) -> list[Row]:
    updates = [row for row in rows if row["part"] == "update"]
    least = {}
    for model in dict.fromkeys(row["model"] for row in updates):
        least[model] = min(row["share_of_limit"] for row in updates if row["model"] == model)
    return [goal(f"least share of the FLOP limit, {m}", "at least", 0.9, value) for m, value in least.items()]


def _full_depth(rows: Sequence[Row]) -> list[Row]:
    """All layers of the 0.5B model, from two depths: the cost of a layer is their difference."""
    few = at(rows, "update", LONG).get("half_billion")
    more = [row for row in rows if row["part"] == "update" and row["layers"]]
    if few is None or not more:
        return []
    stock, ours = (deeper(seconds(few, arm), seconds(more[0], arm), 2, more[0]["layers"]) for arm in ("stock", "ours"))
    name = f"update speed at {LONG}, half_billion, {FULL_DEPTH} layers (extrapolated from 2 and {more[0]['layers']})"
    return [goal(name, "at least", 3.5, stock / ours)]


def deeper(few: float, more: float, layers: int, more_layers: int, depth: int = FULL_DEPTH) -> float:
    """A cost at `depth` layers, from those at two depths."""
    return few + (more - few) / (more_layers - layers) * (depth - layers)


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares: intercept and slope."""
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return mean_y - slope * mean_x, slope


def scaling(rows: Sequence[Row], arm: str) -> dict[int, list[tuple[int, float]]]:
    """Seconds over the number of completions, for each length of completion."""
    found: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        if row["part"] == "scaling":
            found.setdefault(row["completion"], []).append((row["group"], seconds(row, arm)))
    return {length: sorted(points) for length, points in found.items()}


def _scaling(rows: Sequence[Row]) -> list[Row]:
    ours = {length: points for length, points in scaling(rows, "ours").items() if len(points) > 1}
    if not ours:
        return []
    short, long = min(ours), max(ours)
    intercept, slope = line(ours[long])
    bent = max(abs(cost / (intercept + slope * group) - 1) for group, cost in ours[long])
    straight = goal("cost is linear in the completions: largest distance from a line", "at most", 0.1, bent)
    (fewest, least), (most, cost) = ours[short][0], ours[short][-1]
    name = f"the prompt's part is flat: cost of {most} over {fewest} completions of {short} tokens"
    return [straight, goal(name, "at most", 1.25, cost / least)]

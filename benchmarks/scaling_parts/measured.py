"""Coefficients out of the figures of benchmarks/step.py: memory of an update, speed of an update and of decoding."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from step_parts.arithmetic import our_head_passes, shared
from step_parts.models import sizes

from scaling_parts.shapes import cache_bytes, layer_parameters
from trl_grpo_ext.batching.head import KEPT_ELEMENTS

RESULTS = Path(__file__).resolve().parents[1] / "results" / "step.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class Coefficients:
    """What was measured, fp32 on one thread.

    Args:
        activation: copies of (tokens, layers, width + inner width) that an update holds at its peak.
        logits: copies of the logits that it holds.
        flops: matrix products per second of an update.
        decode_layer: seconds per layer and decoding step, whatever its size.
        decode_byte: seconds per byte that a decoding step reads.
    """

    activation: float
    logits: float
    flops: float
    decode_layer: float
    decode_byte: float


def load(path: Path = RESULTS) -> list[Row]:
    """Return the rows of the file."""
    return list(json.loads(path.read_text(encoding="utf-8"))["results"])


def shape_of(row: Row) -> dict[str, Any]:
    """Return the sizes of a row's model."""
    return sizes(row["model"], row["layers"])


def hidden_elements(shape: dict[str, Any], prompt: int, completion: int, rows: int) -> float:
    """Activations of one copy: every token of the packed micro-batch, in every layer."""
    tokens = prompt + rows * completion
    return tokens * shape["num_hidden_layers"] * (shape["hidden_size"] + shape["intermediate_size"])


def logit_elements(shape: dict[str, Any], completion: int, rows: int) -> float:
    """Logits of one copy; above a bound they are computed in pieces and not kept."""
    return float(min(rows * completion * shape["vocab_size"], KEPT_ELEMENTS))


def transient_elements(row: Row) -> tuple[float, float]:
    """Return activations and logits of a row of the file."""
    shape = shape_of(row)
    hidden = hidden_elements(shape, row["prompt"], row["completion"], row["rows"])
    return hidden, logit_elements(shape, row["completion"], row["rows"])


def update_flops(shape: dict[str, Any], prompt: int, completion: int, rows: int) -> float:
    """Return the matrix products of an update of one group in the shared form."""
    return shared(shape, prompt, completion, rows, our_head_passes(shape, completion, rows))


def decode_bytes(shape: dict[str, Any], prompt: int, completion: int, rows: int, width: int) -> float:
    """Bytes that one decoding step reads on average: layers and head, and the cache at half of its growth."""
    weights = layer_parameters(shape) + shape["vocab_size"] * shape["hidden_size"]
    return weights * width + rows * (prompt + completion / 2) * cache_bytes(shape, width)


def predicted_peak(row: Row, found: Coefficients) -> float:
    """Return bytes above weights, gradients and optimizer of an update, fp32."""
    hidden, logits = transient_elements(row)
    return 4 * (found.activation * hidden + found.logits * logits)


def predicted_decode(row: Row, found: Coefficients) -> float:
    """Return the seconds of decoding of a whole step."""
    shape, rows = shape_of(row), row["group"]
    read = decode_bytes(shape, row["prompt"], row["completion"], rows, 4)
    return row["completion"] * (found.decode_layer * shape["num_hidden_layers"] + found.decode_byte * read)


def predicted_update(row: Row, found: Coefficients) -> float:
    """Return the seconds of an update."""
    return update_flops(shape_of(row), row["prompt"], row["completion"], row["rows"]) / found.flops


def _fit(columns: list[tuple[float, float]], values: list[float]) -> tuple[float, float]:
    """Coefficients of at least 0 with the least sum of squared relative errors."""
    wanted = np.array(values)
    matrix = np.array(columns) / wanted[:, None]
    scale = matrix.max(axis=0)
    both = np.linalg.lstsq(matrix / scale, np.ones(len(wanted)), rcond=None)[0] / scale
    if (both >= 0).all():
        return float(both[0]), float(both[1])
    singles = [float(column.sum() / (column**2).sum()) for column in matrix.T]
    errors = [float(((column * one - 1) ** 2).sum()) for column, one in zip(matrix.T, singles, strict=True)]
    return (singles[0], 0.0) if errors[0] <= errors[1] else (0.0, singles[1])


def updates(rows: list[Row]) -> list[Row]:
    """Return the rows of updates of a whole group in one micro-batch."""
    return [row for row in rows if row["part"] in ("update", "scaling") and row["completion"] > 4]


def steps(rows: list[Row]) -> list[Row]:
    """Return the rows of whole steps in one micro-batch."""
    return [row for row in rows if row["part"] == "step" and row["rows"] == row["group"]]


def fit(rows: list[Row]) -> Coefficients:
    """Return the coefficients of a file's rows."""
    made, whole = updates(rows), steps(rows)
    activation, logits = _fit(
        [(4 * hidden, 4 * scored) for hidden, scored in map(transient_elements, made)],
        [row["ours"]["peak_bytes"] for row in made],
    )
    seconds = [row["ours"]["forward"] + row["ours"]["backward"] for row in made]
    rates = [row["ours"]["flops"] / one for row, one in zip(made, seconds, strict=True)]
    columns = []
    for row in whole:
        shape = shape_of(row)
        read = decode_bytes(shape, row["prompt"], row["completion"], row["group"], 4)
        columns.append((row["completion"] * shape["num_hidden_layers"], row["completion"] * read))
    layer, byte = _fit(columns, [row["ours"]["phases"]["decode"] for row in whole])
    return Coefficients(activation, logits, float(np.median(rates)), layer, byte)

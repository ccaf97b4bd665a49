"""What the deltas of a run say of themselves, from their `bitdelta_config.json`. Standard library only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

FOLDER, CONFIG = "bitdelta", "bitdelta_config.json"
MOST_TENSORS = 300
# Bytes of safetensors' types; those that are not here have one.
WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
# Of these codecs a tensor does not come back bit for bit.
LOSSY = frozenset({"sign", "low_rank", "sign_low_rank"})
TENSOR_COLUMNS = ("tensor", "codec", "bits per weight", "weights changed", "why")

Summary = dict[str, Any]


def delta_paths(folder: Path) -> dict[str, Path]:
    """Return where -> file of each delta in an output folder: of the checkpoints by step, then that of the end."""
    found = [
        (int(path.parent.parent.name.rsplit("-", 1)[1]), path)
        for path in folder.glob(f"checkpoint-*/{FOLDER}/{CONFIG}")
        if path.parent.parent.name.rsplit("-", 1)[1].isdigit()
    ]
    paths = {path.parent.parent.name: path for _, path in sorted(found)}
    last = folder / FOLDER / CONFIG
    return paths | ({"end of the run": last} if last.is_file() else {})


def read_table(path: Path) -> dict[str, Any] | None:
    """Return the table of a delta; None where it is damaged, which a report is no place to complain about."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        _summary(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(found)


def _summary(table: Mapping[str, Any]) -> Summary:
    tensors = list(table["tensors"].values())
    weights = [prod(item["shape"]) for item in tensors]
    stored, total = sum(item["nbytes"] for item in tensors), max(sum(weights), 1)
    whole = sum(count * WIDTHS.get(item["dtype"], 1) for count, item in zip(weights, tensors, strict=True))
    return {
        "base": table["base"]["id"],
        "delta_bytes": stored,
        "full_bytes": whole,
        "bits_per_weight": 8 * stored / total,
        "density": sum(item["density"] * count for count, item in zip(weights, tensors, strict=True)) / total,
        "lossless": not any(item["codec"] in LOSSY for item in tensors),
        "codecs": dict(sorted(Counter(item["codec"] for item in tensors).items())),
        "quality": table.get("quality") or {},
    }


def summaries(folder: Path) -> dict[str, Summary]:
    """Return where -> figures of each delta: base, bytes, bits per weight, share of weights changed, codecs, quality."""
    tables = {name: read_table(path) for name, path in delta_paths(folder).items()}
    return {name: _summary(table) for name, table in tables.items() if table is not None}


def tensor_rows(folder: Path) -> tuple[str, list[list[str]]]:
    """Return where the last delta of a run is, and one row per tensor, the largest first; ("", []) without a delta."""
    for name, path in reversed(delta_paths(folder).items()):
        table = read_table(path)
        if table is not None:
            largest = sorted(table["tensors"].items(), key=lambda item: -item[1]["nbytes"])
            return name, [_row(tensor, entry) for tensor, entry in largest[:MOST_TENSORS]]
    return "", []


def _row(name: str, entry: Mapping[str, Any]) -> list[str]:
    bits = 8 * entry["nbytes"] / max(prod(entry["shape"]), 1)
    return [name, entry["codec"], f"{bits:.3f}", f"{entry['density']:.1%}", str(entry.get("reason", ""))]

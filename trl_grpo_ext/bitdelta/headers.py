"""Headers of safetensors files: names, dtypes, shapes and places, checked before anything is read or allocated."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What the safetensors library itself allows.
MOST_HEADER_BYTES = 100_000_000


class HeaderError(ValueError):
    """A file that is no whole safetensors file."""


@dataclass(frozen=True)
class TensorHeader:
    """A tensor in a file.

    Args:
        dtype: name of its dtype, as in `DTYPES`.
        shape: its shape.
        file: the file.
        begin: first byte, counted from the end of the header.
        end: byte after the last.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int


def width(dtype: str) -> int:
    """Return the bytes of an element."""
    return torch.empty(0, dtype=DTYPES[dtype]).element_size()


def is_size(value: Any) -> bool:
    """Return whether a value is a whole number that can be a size."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def is_shape(value: Any) -> bool:
    """Return whether a value is a list of sizes whose product still is one."""
    return isinstance(value, list) and len(value) <= 8 and all(map(is_size, value)) and is_size(prod(value))


def read_headers(file: Path) -> dict[str, TensorHeader]:
    """Return the tensors of a safetensors file.

    Raises:
        HeaderError: it is truncated, or no safetensors file; the message names the tensor where there is one.
        OSError: it can't be read.
    """
    size = file.stat().st_size
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, MOST_HEADER_BYTES):
            raise HeaderError(f"{file.name} is truncated, or no safetensors file: {size} bytes.")
        text = opened.read(length)
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"{file.name}: its header is no JSON.") from error
    if not isinstance(entries, dict):
        raise HeaderError(f"{file.name}: its header is no mapping.")
    entries.pop("__metadata__", None)
    return {name: _tensor_header(file, name, entry, size - 8 - length) for name, entry in entries.items()}


def _tensor_header(file: Path, name: str, entry: Any, room: int) -> TensorHeader:
    where = f"{name} in {file.name}"
    dtype = entry.get("dtype") if isinstance(entry, dict) else entry
    if not isinstance(entry, dict) or not isinstance(dtype, str) or dtype not in DTYPES:
        raise HeaderError(f"{where}: unknown dtype {dtype!r}.")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not is_shape(shape) or not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
        raise HeaderError(f"{where}: shape {shape!r} or offsets {offsets!r} are none.")
    begin, end = offsets
    if end - begin != prod(shape) * width(entry["dtype"]):
        raise HeaderError(f"{where}: {end - begin} bytes do not hold {entry['dtype']} {shape}.")
    if end > room:
        raise HeaderError(f"{where}: the file is truncated; it ends {end - room} bytes before the tensor does.")
    return TensorHeader(entry["dtype"], tuple(shape), file, begin, end)

"""Sign bits, eight to a byte: bit k of byte j is weight 8 j + k, 1 for plus. Rows end on a byte."""

from __future__ import annotations

from functools import lru_cache

import numpy
import torch
from torch import Tensor


def packed_width(columns: int) -> int:
    """Return the bytes of a row of `columns` bits."""
    return -(-columns // 8)


class SignPacker:
    """Packs the signs of float32 tiles on the CPU, in a buffer that is used again: fresh memory costs more than packing.

    numpy compares and packs several times faster than torch does.

    Args:
        rows: most rows of a tile.
        columns: columns of a tile.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self._plus = numpy.empty((rows, columns), dtype=bool)

    def pack(self, values: Tensor, out: Tensor) -> None:
        """Write the bits of values [rows, columns], 1 where they are not below zero, to out [rows, bytes]."""
        plus = numpy.greater_equal(values.numpy(), 0, out=self._plus[: len(values)])
        # The whole tile as one row is faster, and the same where rows end on a byte.
        rows = plus.reshape(1, -1) if plus.shape[1] % 8 == 0 else plus
        out.numpy().reshape(len(rows), -1)[:] = numpy.packbits(rows, axis=1, bitorder="little")


class SignUnpacker:
    """Unpacks tiles of sign bits on the CPU, in buffers that are used again.

    Args:
        rows: most rows of a tile.
        columns: columns of a tile.
        table: what each byte becomes, [256, 8]; by default float32 signs.
    """

    def __init__(self, rows: int, columns: int, table: numpy.ndarray | None = None) -> None:
        self._columns, self._table = columns, _cpu_table() if table is None else table
        self._index = numpy.empty(rows * packed_width(columns), dtype=numpy.intp)
        self._found = numpy.empty((len(self._index), 8), dtype=self._table.dtype)

    def unpack(self, packed: Tensor) -> Tensor:
        """Return packed bits [rows, bytes] by the table, [rows, columns]; the next call overwrites them."""
        count = packed.numel()
        self._index[:count] = packed.reshape(-1).numpy()
        # A byte is never outside the table; "clip" only spares numpy a copy of the result.
        found = numpy.take(self._table, self._index[:count], axis=0, out=self._found[:count], mode="clip")
        return torch.from_numpy(found).view(packed.shape[0], -1)[:, : self._columns]


@lru_cache(maxsize=8)
def _table(device: torch.device) -> Tensor:
    """Return the eight signs of every byte, float32 [256, 8]."""
    values = torch.arange(256, device=device)[:, None].bitwise_right_shift(torch.arange(8, device=device))
    return values.bitwise_and(1).mul(2).sub(1).to(torch.float32)


@lru_cache(maxsize=1)
def _cpu_table() -> numpy.ndarray:
    return _table(torch.device("cpu")).numpy()


@lru_cache(maxsize=1)
def flip_table() -> numpy.ndarray:
    """Return what each byte does to eight 16-bit floats by exclusive or: int16 [256, 8], the top bit for minus."""
    return numpy.where(_cpu_table() < 0, numpy.int16(-(2**15)), numpy.int16(0))


def unpack_signs(packed: Tensor, columns: int) -> Tensor:
    """Return packed bits [rows, bytes] as float32 signs, +1 or -1, [rows, columns]."""
    signs = torch.index_select(_table(packed.device), 0, packed.reshape(-1).to(torch.int32))
    return signs.view(packed.shape[0], -1)[:, :columns]

"""Sign bits, eight to a byte: bit k of byte j is weight 8 j + k, 1 for plus. Rows end on a byte."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# Times this constant, the eight bytes 0 or 1 of a 64-bit word come together in its highest byte.
_GATHER = 0x0102040810204080
_LOWEST = 0x0101010101010101


def packed_width(columns: int) -> int:
    """Return the bytes of a row of `columns` bits."""
    return -(-columns // 8)


def pack_bits(bits: Tensor) -> Tensor:
    """Return bool bits [rows, columns] as uint8 [rows, ceil(columns / 8)]; the bits past the end are 0."""
    rows, columns = bits.shape
    if columns % 8:
        bits = torch.nn.functional.pad(bits, (0, 8 * packed_width(columns) - columns))
    words = bits.contiguous().view(torch.int64)
    return words.mul(_GATHER).bitwise_right_shift_(56).to(torch.uint8).view(rows, -1)


class SignPacker:
    """Packs the signs of float32 tiles, in buffers that are used again: comparing is slower than moving sign bits.

    Args:
        rows: most rows of a tile.
        columns: columns of a tile.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self._columns = columns
        if columns % 8 == 0:
            self._wide = torch.empty(rows, columns, dtype=torch.int32)
            self._narrow = torch.empty(rows, columns, dtype=torch.int8)

    def pack(self, values: Tensor, out: Tensor) -> None:
        """Write the bits of values [rows, columns], 1 where the sign is plus, to out [rows, bytes]."""
        if self._columns % 8:
            out.copy_(pack_bits(values >= 0))
            return
        rows = len(values)
        # 0 for plus and -1 for minus.
        torch.bitwise_right_shift(values.view(torch.int32), 31, out=self._wide[:rows])
        self._narrow[:rows].copy_(self._wide[:rows])
        words = self._narrow[:rows].view(torch.int64).bitwise_not_().bitwise_and_(_LOWEST)
        out.copy_(words.mul_(_GATHER).bitwise_right_shift_(56))


@lru_cache(maxsize=8)
def _table(device: torch.device) -> Tensor:
    """Return the eight signs of every byte, float32 [256, 8]."""
    values = torch.arange(256, device=device)[:, None].bitwise_right_shift(torch.arange(8, device=device))
    return values.bitwise_and(1).mul(2).sub(1).to(torch.float32)


def unpack_signs(packed: Tensor, columns: int) -> Tensor:
    """Return packed bits [rows, bytes] as float32 signs, +1 or -1, [rows, columns]."""
    signs = torch.index_select(_table(packed.device), 0, packed.reshape(-1).to(torch.int32))
    return signs.view(packed.shape[0], -1)[:, :columns]


def unpack_bits(packed: Tensor, columns: int) -> Tensor:
    """Return packed bits [rows, bytes] as bool [rows, columns]."""
    return unpack_signs(packed, columns) > 0

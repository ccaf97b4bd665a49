"""Lossless codes of sparse deltas: which weights changed, and by how many steps of their format.

A 16-bit float is read as an integer that grows with its value, so that a change is a small number of steps (units in
the last place); other formats keep the new value. Whether a weight changes, and how far, depends on its exponent: a
step of a large weight is large. So weights are ordered by the base's exponent before Huffman and run-length coding
(deflate, whose tables change every few thousand symbols). Decoding needs the very base, and then gives every bit back.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from trl_grpo_ext.bitdelta.errors import DamagedDeltaError

BLOCK = 1 << 22
EXPONENT_BITS = {torch.bfloat16: 7, torch.float16: 10}
# One byte per changed weight; larger numbers of steps follow in a stream of their own.
ESCAPE = 255
# Deflate codes a byte in no less than about a thousandth of it.
MOST_EXPANSION = 1100
STREAMS = 3


@dataclass
class SparseCode:
    """Blocks of coded changes.

    Args:
        data: uint8, the streams of all blocks one after another.
        lengths: int64 [blocks, 4]: changed weights, and the bytes of the three streams (mask, changes, escapes).
    """

    data: Tensor
    lengths: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that the code takes."""
        return self.data.numel() + 8 * self.lengths.numel()


def estimated_bytes(numel: int, changed: int) -> float:
    """Return about what a lossless code takes: H2(p) bits per weight, and 3 bits per change."""
    share = changed / max(numel, 1)
    bits = 0.0 if share in (0.0, 1.0) else -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    return (numel * bits + 3 * changed) / 8


def blocks_of(numel: int) -> int:
    """Return how many blocks a tensor has."""
    return -(-numel // BLOCK)


def _deflate(data: numpy.ndarray) -> bytes:
    # Runs of one byte are all that deflate's matching finds here: an exponent at which all weights change, or none.
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
    return coder.compress(data.tobytes()) + coder.flush()


def _inflate(data: numpy.ndarray, size: int) -> numpy.ndarray:
    """Undo `_deflate`, never giving out more than `size` bytes."""
    if size > MOST_EXPANSION * len(data) + 64:
        raise DamagedDeltaError(f"{len(data)} bytes can't hold {size}")
    decoder = zlib.decompressobj(-15)
    try:
        # One more than wanted, so that a longer stream shows.
        plain = decoder.decompress(data.tobytes(), size + 1)
    except zlib.error as error:
        raise DamagedDeltaError(f"its deflate stream is damaged ({error})") from error
    if len(plain) != size or not decoder.eof:
        raise DamagedDeltaError(f"a stream holds {len(plain)} bytes instead of {size}")
    return numpy.frombuffer(plain, numpy.uint8)


def _steps(values: Tensor) -> numpy.ndarray:
    """Return 16-bit floats as int16 that grow with their value; -0 and +0 differ."""
    bits = values.view(torch.int16).numpy()
    return numpy.where(bits < 0, bits ^ numpy.int16(0x7FFF), bits)


def _exponent_order(base: Tensor) -> numpy.ndarray | None:
    """Return the order of the weights by exponent, largest first; None for formats that keep their order."""
    mantissa = EXPONENT_BITS.get(base.dtype)
    if mantissa is None:
        return None
    bits = base.view(torch.int16).numpy().view(numpy.uint16) & 0x7FFF
    top = int(bits.max(initial=0)) >> mantissa
    classes = numpy.minimum(top - (bits >> mantissa).astype(numpy.int32), 15).astype(numpy.uint8)
    return numpy.argsort(classes, kind="stable")


def _changes(base: Tensor, tuned: Tensor, places: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return what each changed weight is coded as: bytes, and the 16-bit escapes or nothing."""
    if base.dtype not in EXPONENT_BITS:
        return tuned.view(torch.uint8).numpy().reshape(-1, tuned.element_size())[places].reshape(-1), numpy.empty(
            0, "<u2"
        )
    # Differences wrap around, and so does adding them.
    steps = _steps(tuned)[places] - _steps(base)[places]
    folded = ((steps << 1) ^ (steps >> 15)).view(numpy.uint16)
    small = numpy.minimum(folded, ESCAPE).astype(numpy.uint8)
    return small, folded[folded >= ESCAPE].astype("<u2")


def _bit_pattern(values: Tensor) -> Tensor:
    return values.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])


def sparse_code(base: Tensor, tuned: Tensor) -> SparseCode:
    """Code a tensor by its changes from a base of the same dtype and size; both flat."""
    streams: list[bytes] = []
    lengths = []
    for start in range(0, tuned.numel(), BLOCK):
        before, after = base[start : start + BLOCK], tuned[start : start + BLOCK]
        changed = (_bit_pattern(before) != _bit_pattern(after)).numpy()
        order = _exponent_order(before)
        if order is not None:
            changed = changed[order]
        places = numpy.flatnonzero(changed) if order is None else order[changed]
        small, escapes = _changes(before, after, places)
        block = [_deflate(numpy.packbits(changed, bitorder="little")), _deflate(small), escapes.tobytes()]
        lengths.append([len(places), *map(len, block)])
        streams += block
    data = numpy.frombuffer(b"".join(streams), numpy.uint8).copy()
    return SparseCode(torch.from_numpy(data), torch.tensor(lengths, dtype=torch.int64).reshape(-1, STREAMS + 1))


def check_lengths(code: SparseCode, numel: int) -> None:
    """Check that a code fits a tensor of `numel` weights, before anything is allocated.

    Raises:
        DamagedDeltaError: it does not.
    """
    if tuple(code.lengths.shape) != (blocks_of(numel), STREAMS + 1):
        raise DamagedDeltaError(f"it has {code.lengths.shape[0]} blocks instead of {blocks_of(numel)}")
    rows = code.lengths.tolist()
    if any(value < 0 for row in rows for value in row):
        raise DamagedDeltaError("a length is negative")
    if sum(sum(row[1:]) for row in rows) != code.data.numel():
        raise DamagedDeltaError(f"its streams do not add up to {code.data.numel()} bytes")
    if any(row[0] > min(BLOCK, numel) for row in rows):
        raise DamagedDeltaError("more weights changed than there are")


def sparse_decode(code: SparseCode, base: Tensor) -> Tensor:
    """Return the tensor that was coded: flat, of the base's dtype, bit for bit.

    Args:
        base: the base, flat.

    Raises:
        DamagedDeltaError: the code does not fit the base's size, or a stream is damaged.
    """
    check_lengths(code, base.numel())
    result = base.clone()
    place = 0
    for index, (changed, *sizes) in enumerate(code.lengths.tolist()):
        streams = []
        for size in sizes:
            streams.append(code.data[place : place + size].numpy())
            place += size
        _decode_block(result[index * BLOCK : (index + 1) * BLOCK], changed, streams)
    return result


def _decode_block(values: Tensor, changed: int, streams: list[numpy.ndarray]) -> None:
    order = _exponent_order(values)
    mask = numpy.unpackbits(_inflate(streams[0], -(-len(values) // 8)), bitorder="little")[: len(values)].view(bool)
    places = numpy.flatnonzero(mask) if order is None else order[mask]
    if len(places) != changed:
        raise DamagedDeltaError(f"{len(places)} weights are marked as changed instead of {changed}")
    width = 1 if order is not None else values.element_size()
    small = _inflate(streams[1], changed * width)
    if order is None:
        values.view(torch.uint8).numpy().reshape(-1, width)[places] = small.reshape(-1, width)
        return
    bits = values.view(torch.int16).numpy()
    steps = _steps(values)[places] + _unfold(small, streams[2])
    bits[places] = numpy.where(steps < 0, steps ^ numpy.int16(0x7FFF), steps)


def _unfold(small: numpy.ndarray, escapes: numpy.ndarray) -> numpy.ndarray:
    folded = small.astype(numpy.uint16)
    large = numpy.flatnonzero(small == ESCAPE)
    if escapes.nbytes != 2 * len(large):
        raise DamagedDeltaError(f"it has {escapes.nbytes // 2} large changes instead of {len(large)}")
    folded[large] = numpy.frombuffer(escapes.tobytes(), "<u2")
    return ((folded >> 1) ^ (-(folded & 1).astype(numpy.int16)).view(numpy.uint16)).view(numpy.int16)

"""Sign and scale codes of one or more masks, tile by tile (BitDelta, arXiv 2402.10193)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trl_grpo_ext.bitdelta.packing import SignPacker, SignUnpacker, packed_width, unpack_signs
from trl_grpo_ext.bitdelta.scales import explained, group_count, mean_magnitudes, normal_equations, solve_scales

# A tile of fp32 weights that stays in a core's cache, beside its buffers.
TILE = 1 << 17


def matrix(tensor: Tensor) -> Tensor:
    """Return a tensor as [rows, columns]: its last dimension, and all the others; experts' are rows too."""
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim != 2 else tensor


def tile_rows(columns: int) -> int:
    """Return how many rows a tile has."""
    return max(1, TILE // max(columns, 1))


def delta_tiles(base: Tensor, tuned: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, tuned - base in float32); the tensor is reused for the next tile.

    Two bfloat16 tensors are subtracted as such, which is half the traffic, and exact where a delta is smaller than its
    weight (Sterbenz); elsewhere it is rounded once, by at most 1 / 256.
    """
    size = min(tile_rows(tuned.shape[1]), tuned.shape[0])
    narrow = base.dtype == tuned.dtype == torch.bfloat16
    first = torch.empty(size, tuned.shape[1])
    second = torch.empty(size, tuned.shape[1], dtype=torch.bfloat16 if narrow else torch.float32)
    for start in range(0, tuned.shape[0], size):
        end = min(start + size, tuned.shape[0])
        found, other = first[: end - start], second[: end - start]
        if narrow:
            found.copy_(torch.sub(tuned[start:end], base[start:end], out=other))
        else:
            found.copy_(tuned[start:end]).sub_(other.copy_(base[start:end]))
        yield start, found


@dataclass
class SignCode:
    """Signs and scales of a delta.

    Args:
        signs: uint8 [masks, rows, ceil(columns / 8)].
        scales: [masks] in float32, or [masks, rows] or [masks, rows, groups] in bfloat16.
        columns: columns of the delta.
        group: weights per scale; the number of columns for "row" and "matrix".
        share: share of the delta's energy that mean scales of these signs explain; 0 where there is none to explain.
    """

    signs: Tensor
    scales: Tensor
    columns: int
    group: int
    share: float = 1.0

    def tile(self, start: int, rows: int) -> Tensor:
        """Return rows of the coded delta, float32 [rows, columns]."""
        return self.reader(rows).tile(start, rows)

    def reader(self, rows: int) -> SignReader:
        """Return a reader of tiles of at most this many rows, with buffers that it uses again."""
        return SignReader(self, rows)

    def scale(self, mask: int, start: int, rows: int) -> Tensor:
        """Return what multiplies the signs of a tile, float32 [], [rows, 1] or [rows, groups]."""
        scale = self.scales[mask].float() if self.scales.ndim == 1 else self.scales[mask, start : start + rows].float()
        return scale if scale.ndim == 0 else scale.reshape(rows, -1)


class SignReader:
    """Gives the tiles of a coded delta, in buffers that it uses again.

    Args:
        code: the code.
        rows: most rows of a tile.
    """

    def __init__(self, code: SignCode, rows: int) -> None:
        self._code = code
        self._unpacker = SignUnpacker(rows, code.columns) if code.signs.device.type == "cpu" else None
        self._total = torch.empty(rows, code.columns, device=code.signs.device)

    def tile(self, start: int, rows: int) -> Tensor:
        """Return rows of the coded delta, float32 [rows, columns]; the next call overwrites them."""
        total = self._total[:rows].zero_()
        for mask in range(self._code.signs.shape[0]):
            self._add_mask(total, total, mask, start)
        return total

    def add(self, base: Tensor, start: int) -> Tensor:
        """Return base [rows, columns], float32, plus these rows of the delta; the next call overwrites them."""
        total = self._total[: len(base)]
        if self._code.signs.shape[0] == 1:
            return self._add_mask(base, total, 0, start)
        return self.tile(start, len(base)).add_(base)

    def _add_mask(self, base: Tensor, out: Tensor, mask: int, start: int) -> Tensor:
        """Write base + scale * signs to `out`; in one pass over the tile, for the passes are what it costs."""
        rows, code = len(base), self._code
        packed = code.signs[mask, start : start + rows]
        signs = unpack_signs(packed, code.columns) if self._unpacker is None else self._unpacker.unpack(packed)
        scale = code.scale(mask, start, rows)
        if scale.ndim == 0 or scale.shape[1] == 1:
            return torch.addcmul(base, signs, scale, out=out)
        if code.columns % code.group:
            wide = scale.repeat_interleave(code.group, 1)[:, : code.columns]
            return torch.addcmul(base, signs, wide, out=out)
        shape = (rows, -1, code.group)
        torch.addcmul(base.view(shape), signs.view(shape), scale[:, :, None], out=out.view(shape))
        return out


def sign_code(base: Tensor, tuned: Tensor, masks: int, scale: str, group_size: int | None) -> SignCode:
    """Code tuned - base, both [rows, columns], with `masks` sign masks and mean scales.

    Args:
        masks: sign masks; every further one codes what the ones before have left.
        scale: "matrix", "row" or "group".
        group_size: weights per scale of "group".
    """
    rows, columns = tuned.shape
    group = min(group_size or columns, columns) if scale == "group" else columns
    signs = torch.empty(masks, rows, packed_width(columns), dtype=torch.uint8)
    found: list[Tensor] = []
    packer = SignPacker(tile_rows(columns), columns)
    energy = taken = 0.0
    for mask in range(masks):
        means = torch.empty(rows, group_count(columns, group))
        before = (
            SignCode(signs[:mask], torch.stack(found), columns, group).reader(tile_rows(columns)) if mask else None
        )
        for start, delta in delta_tiles(base, tuned):
            end = start + len(delta)
            if before is None:
                energy += float(torch.dot(delta.view(-1), delta.view(-1)))
            else:
                delta.sub_(before.tile(start, len(delta)))
            packer.pack(delta, signs[mask, start:end])
            # Packed and measured already, the tile is not needed any more.
            means[start:end] = mean_magnitudes(delta.abs_(), group)
        # Rounding a scale by e costs n e^2 of it, which is nothing.
        taken += _taken(means.double().mean() if scale == "matrix" else means, rows, columns, group)
        found.append(_stored(means, scale))
    return SignCode(signs, torch.stack(found), columns, group, min(taken / energy, 1.0) if energy else 0.0)


def _stored(means: Tensor, scale: str) -> Tensor:
    if scale == "matrix":
        return means.double().mean().float()
    return (means[:, 0] if scale == "row" else means).to(torch.bfloat16)


def _taken(scales: Tensor, rows: int, columns: int, group: int) -> float:
    if scales.ndim == 0:
        return float(scales) ** 2 * rows * columns
    return explained(scales.float().reshape(rows, -1), columns, group)


def fit_to_inputs(code: SignCode, base: Tensor, tuned: Tensor, inputs: Tensor) -> SignCode:
    """Return the code with the scales of least squared error of the layer's outputs; see `scales`.

    Args:
        inputs: inputs that the layer has seen, [tokens, columns].

    Raises:
        ValueError: inputs of another width than the tensor's.
    """
    if inputs.ndim != 2 or inputs.shape[1] != code.columns:
        raise ValueError(f"inputs must be [tokens, {code.columns}], not {list(inputs.shape)}.")
    masks, rows = code.signs.shape[:2]
    fallback = _per_row(code.scales.float(), rows)
    fitted, total = torch.empty_like(fallback), []
    inputs = inputs.float()
    for start, delta in _input_tiles(base, tuned, fallback.shape[1] * len(inputs)):
        stop = start + len(delta)
        signs = torch.stack([unpack_signs(code.signs[mask, start:stop], code.columns) for mask in range(masks)])
        gram, right = normal_equations(inputs, delta, signs, code.group)
        if code.scales.ndim == 1:
            total.append((gram.double().sum(0), right.double().sum(0)))
        else:
            fitted[start:stop] = solve_scales(gram, right, fallback[start:stop])
    return SignCode(code.signs, _like(code.scales, fitted, total), code.columns, code.group, code.share)


def _input_tiles(base: Tensor, tuned: Tensor, features: int) -> Iterator[tuple[int, Tensor]]:
    """As `delta_tiles`, cut so that a tile's features stay below 16 million numbers."""
    limit = max(1, (1 << 24) // max(features, 1))
    for start, delta in delta_tiles(base, tuned):
        for offset in range(0, len(delta), limit):
            yield start + offset, delta[offset : offset + limit]


def _per_row(scales: Tensor, rows: int) -> Tensor:
    """Return scales as [rows, masks * groups]."""
    if scales.ndim == 1:
        return scales.expand(rows, -1)
    return scales.transpose(0, 1).reshape(rows, -1)


def _like(scales: Tensor, fitted: Tensor, total: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return fitted scales in the shape and dtype that the code stores."""
    if scales.ndim == 1:
        gram, right = (sum(parts[1:], parts[0]) for parts in zip(*total, strict=True))
        return solve_scales(gram, right, scales.double()).float()
    masks, rows = scales.shape[:2]
    return fitted.view(rows, masks, -1).transpose(0, 1).reshape(scales.shape).to(scales.dtype).contiguous()

"""The codecs of a delta: what each stores, how it is laid out, and how a tensor is made from it again.

Codecs and their parts, for a tensor of shape [..., columns] read as [rows, columns]:

    none            nothing: the base's tensor
    rows            index int64 [n], value [n, columns]: rows that replace the base's, or follow them
    sparse          data uint8, lengths int64 [blocks, 4]: see `sparse`
    low_rank        a bfloat16 [rows, r], b bfloat16 [r, columns]: base + a b
    sign            sign uint8 [masks, rows, bytes], scale (see `signs.SignCode`): base + sum_k scale_k sign_k
    sign_low_rank   sign, scale, a, b: base + sum_k scale_k sign_k + a b
    raw             value: the tensor itself

`none`, `rows`, `sparse` and `raw` are exact; the others are added to the base in float32, then rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from trl_grpo_ext.bitdelta.errors import DamagedDeltaError
from trl_grpo_ext.bitdelta.narrow import add_narrow, may_add_narrow
from trl_grpo_ext.bitdelta.packing import packed_width
from trl_grpo_ext.bitdelta.scales import group_count
from trl_grpo_ext.bitdelta.signs import SignCode, matrix, tile_rows
from trl_grpo_ext.bitdelta.sparse import SparseCode, blocks_of, check_lengths, sparse_decode

EXACT = frozenset({"none", "rows", "sparse", "raw"})
LOSSY = frozenset({"sign", "low_rank", "sign_low_rank"})
# A length that the codec itself decides.
FREE = -1


@dataclass
class Encoded:
    """A coded tensor.

    Args:
        codec: one of the codecs above.
        parts: what is stored.
        params: settings that decoding needs: `masks`, `scale`, `group`, `rank`.
    """

    codec: str
    parts: dict[str, Tensor] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the parts."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())


def encoded_signs(code: SignCode, scale: str) -> Encoded:
    """Return a sign code as it is stored."""
    params = {"masks": code.signs.shape[0], "scale": scale, "group": code.group}
    return Encoded("sign", {"sign": code.signs, "scale": code.scales.contiguous()}, params)


def _sign_layout(params: Mapping[str, Any], rows: int, columns: int) -> dict[str, tuple[torch.dtype, list[int]]]:
    masks, scale, group = params["masks"], params["scale"], params["group"]
    if scale not in ("matrix", "row", "group") or masks < 1 or group < 1:
        raise DamagedDeltaError(f"scale {scale!r}, masks {masks} and group {group} are no sign code")
    shapes = {"matrix": [masks], "row": [masks, rows], "group": [masks, rows, group_count(columns, group)]}
    dtype = torch.float32 if scale == "matrix" else torch.bfloat16
    return {"sign": (torch.uint8, [masks, rows, packed_width(columns)]), "scale": (dtype, shapes[scale])}


def layout(
    codec: str, params: Mapping[str, Any], shape: list[int], dtype: torch.dtype
) -> dict[str, tuple[torch.dtype, list[int]]]:
    """Return dtype and shape of every part that a codec stores for a tensor; FREE where the codec decides a length.

    Raises:
        DamagedDeltaError: an unknown codec, or parameters that are none of it.
    """
    columns = shape[-1] if shape else 1
    rows = prod(shape[:-1])
    try:
        if codec == "none":
            return {}
        if codec == "raw":
            return {"value": (dtype, shape)}
        if codec == "rows":
            return {"index": (torch.int64, [FREE]), "value": (dtype, [FREE, *shape[1:]])}
        if codec == "sparse":
            return {"data": (torch.uint8, [FREE]), "lengths": (torch.int64, [blocks_of(prod(shape)), 4])}
        if codec not in LOSSY:
            raise DamagedDeltaError(f"there is no codec {codec!r}")
        if len(shape) < 2 or not prod(shape):
            raise DamagedDeltaError(f"codec {codec} is for matrices, not for the shape {shape}")
        signs = {} if codec == "low_rank" else _sign_layout(params, rows, columns)
        return signs if codec == "sign" else signs | _factors(params, rows, columns)
    except (KeyError, TypeError) as error:
        raise DamagedDeltaError(f"the parameters {dict(params)!r} are none of codec {codec}") from error


def _factors(params: Mapping[str, Any], rows: int, columns: int) -> dict[str, tuple[torch.dtype, list[int]]]:
    rank = params["rank"]
    if rank < 1:
        raise DamagedDeltaError(f"rank {rank} is no rank")
    return {"a": (torch.bfloat16, [rows, rank]), "b": (torch.bfloat16, [rank, columns])}


def as_base(base: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the base as exact codecs see it: in the fine-tuned tensor's dtype."""
    return base if base.dtype == dtype else base.to(dtype)


def decode(item: Encoded, base: Tensor | None, shape: list[int], dtype: torch.dtype, out: torch.dtype) -> Tensor:
    """Return the tensor that was coded.

    Args:
        item: the code, whose parts have the shapes of `layout`.
        base: the base's tensor; None for a tensor that it does not have.
        shape: shape of the fine-tuned tensor.
        dtype: its dtype, which exact codecs give back bit for bit.
        out: dtype of the result. Lossy codes are added in float32 and rounded to it once.

    Raises:
        DamagedDeltaError: indices out of range, streams of another length, or no base where one is needed.
    """
    if item.codec == "raw":
        return item.parts["value"].to(out)
    if base is None:
        raise DamagedDeltaError(f"codec {item.codec} needs a tensor of the base, which has none")
    if item.codec != "rows" and list(base.shape) != shape:
        raise DamagedDeltaError(f"its shape {shape} is not the base's {list(base.shape)}")
    if item.codec in LOSSY:
        return add_delta(item, base, torch.empty(shape, dtype=out, device=base.device))
    reference = as_base(base, dtype)
    if item.codec == "none":
        return reference.to(out)
    if item.codec == "rows":
        return _replace_rows(item, reference, shape).to(out)
    code = SparseCode(item.parts["data"], item.parts["lengths"])
    return sparse_decode(code, reference.reshape(-1)).view(shape).to(out)


def add_delta(item: Encoded, base: Tensor, result: Tensor) -> Tensor:
    """Write base + delta of a lossy code to a contiguous tensor of the base's shape, tile by tile, and return it."""
    plane, target = matrix(base), matrix(result)
    rows, columns = plane.shape
    step = min(tile_rows(columns), max(rows, 1))
    if item.codec == "sign" and may_add_narrow(sign_code_of(item, columns), plane, target):
        add_narrow(sign_code_of(item, columns), plane, target, step)
        return result
    code = sign_code_of(item, columns).reader(step) if "sign" in item.parts else None
    right = item.parts["b"].float() if "b" in item.parts else None
    wide = torch.empty(step, columns, device=plane.device)
    for start in range(0, rows, step):
        end = min(start + step, rows)
        total = wide[: end - start].copy_(plane[start:end])
        if code is not None:
            total = code.add(total, start)
        if right is not None:
            total = torch.addmm(total, item.parts["a"][start:end].float(), right)
        target[start:end] = total
    return result


def _replace_rows(item: Encoded, base: Tensor, shape: list[int]) -> Tensor:
    index, value = item.parts["index"], item.parts["value"]
    check_rows(index, value, shape[0], base.shape[0])
    result = torch.empty(shape, dtype=base.dtype)
    common = min(shape[0], base.shape[0])
    result[:common] = base[:common]
    result[index] = value
    return result


def check_rows(index: Tensor, value: Tensor, rows: int, base_rows: int) -> None:
    """Check that replaced rows exist, and that rows past the base's end are all there.

    Raises:
        DamagedDeltaError: they do not, or are not.
    """
    if len(index) != len(value):
        raise DamagedDeltaError(f"it has {len(index)} indices for {len(value)} rows")
    if rows - base_rows > len(index):
        raise DamagedDeltaError(f"it has {len(index)} rows, and {rows - base_rows} are missing in the base")
    if len(index) and (int(index.min()) < 0 or int(index.max()) >= rows):
        raise DamagedDeltaError(f"a row's index is outside [0, {rows})")
    if bool((index[1:] <= index[:-1]).any()):
        raise DamagedDeltaError("its rows' indices do not ascend")
    if rows > base_rows and int((index >= base_rows).sum()) != rows - base_rows:
        raise DamagedDeltaError("rows past the base's end are missing")


def sign_code_of(item: Encoded, columns: int) -> SignCode:
    """Return the sign code among the parts."""
    return SignCode(item.parts["sign"], item.parts["scale"], columns, item.params["group"])


def check_values(item: Encoded, shape: list[int], base_rows: int | None) -> None:
    """Check what only the values of the parts say; the shapes are `layout`'s.

    Raises:
        DamagedDeltaError: an index out of range, streams that do not add up, a scale or factor that is not finite.
    """
    if item.codec == "sparse":
        check_lengths(SparseCode(item.parts["data"], item.parts["lengths"]), prod(shape))
    if item.codec == "rows" and base_rows is not None:
        check_rows(item.parts["index"], item.parts["value"], shape[0], base_rows)
    for name in ("scale", "a", "b"):
        if name in item.parts and not bool(torch.isfinite(item.parts[name]).all()):
            raise DamagedDeltaError(f"its part {name} is not finite")

"""One sign mask added to bfloat16 weights as bfloat16: the bits that float32 gives, with a quarter of the traffic.

A scale that is a bfloat16 has its sign flipped by an exclusive or, and torch adds two bfloat16 in float32 and rounds once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trl_grpo_ext.bitdelta.packing import SignUnpacker, flip_table
from trl_grpo_ext.bitdelta.signs import SignCode


def may_add_narrow(code: SignCode, base: Tensor, out: Tensor) -> bool:
    """Return whether `add_narrow` can add a code to these tensors."""
    narrow = {tensor.dtype for tensor in (base, out, code.scales)} == {torch.bfloat16}
    on_cpu = {tensor.device.type for tensor in (base, out, code.signs)} == {"cpu"}
    whole = code.columns % 8 == 0 and code.columns % code.group == 0
    return narrow and on_cpu and whole and len(code.signs) == 1


def add_narrow(code: SignCode, base: Tensor, out: Tensor, step: int) -> None:
    """Write base + scale * sign, all of them [rows, columns], to `out`, `step` rows at a time."""
    unpacker = SignUnpacker(step, code.columns, flip_table())
    for start in range(0, len(base), step):
        end = min(start + step, len(base))
        delta = unpacker.unpack(code.signs[0, start:end])
        scale = code.scales[0, start:end].view(torch.int16).reshape(end - start, -1, 1)
        delta.view(end - start, -1, code.group).bitwise_xor_(scale)
        torch.add(base[start:end], delta.view(torch.bfloat16), out=out[start:end])

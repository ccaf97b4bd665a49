"""Unmerged deltas: one base in memory, and in one batch another variant for every request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trl_grpo_ext.bitdelta.codecs import Encoded, sign_code_of
from trl_grpo_ext.bitdelta.errors import BitDeltaError
from trl_grpo_ext.bitdelta.signs import tile_rows

# Rows of the batch by variant; rows without any run on the base.
Groups: TypeAlias = Mapping[str, Sequence[int]]


def delta_product(item: Encoded, inputs: Tensor) -> Tensor:
    r"""Return inputs times the transposed delta, x D^T, without ever making D whole.

    x D^T = x (sum_k scale_k sign_k)^T + (x b^T) a^T, tile by tile over the rows of D.

    Args:
        item: a lossy code of a matrix [rows, columns].
        inputs: [..., columns], float32.

    Returns:
        [..., rows], float32.
    """
    parts, columns = item.parts, inputs.shape[-1]
    rows = parts["sign"].shape[1] if "sign" in parts else len(parts["a"])
    found = inputs.new_zeros(*inputs.shape[:-1], rows)
    if "sign" in parts:
        step = min(tile_rows(columns), rows)
        reader = sign_code_of(item, columns).reader(step)
        for start in range(0, rows, step):
            end = min(start + step, rows)
            found[..., start:end] = inputs @ reader.tile(start, end - start).T
    if "a" in parts:
        found += (inputs @ parts["b"].float().T) @ parts["a"].float().T
    return found


class _PerRequest(nn.Module):
    """A layer whose rows belong to several variants."""

    def __init__(self, name: str, inner: nn.Module, size: int, groups: Groups) -> None:
        super().__init__()
        self.name, self.inner, self.size, self.groups = name, inner, size, groups

    def __getattr__(self, name: str) -> Any:
        """Return what the model asks its layer for beside the outputs: weight, in_features, ..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def rows(self, given: Tensor, group: Sequence[int]) -> Tensor:
        """Return the rows of a group; generation repeats every request as often as it samples it."""
        if given.shape[0] % self.size:
            raise BitDeltaError(
                f"{self.name}: it sees {given.shape[0]} rows, which are no multiple of the batch's {self.size}, so that "
                "whose they are is not known. Activate one variant after the other."
            )
        times = given.shape[0] // self.size
        return torch.tensor([row * times + copy for row in group for copy in range(times)], device=given.device)


class BitDeltaLinear(_PerRequest):
    """y = x W^T + x D_i^T: a linear layer of the base, and beside it the packed delta of every request's variant.

    Args:
        name: name of the layer, for messages.
        inner: the base's layer, which stays as it is.
        size: requests of the batch.
        groups: rows of the batch by variant.
        deltas: packed codes by variant; a variant that does not change the layer has none.
    """

    def __init__(self, name: str, inner: nn.Linear, size: int, groups: Groups, deltas: Mapping[str, Encoded]) -> None:
        super().__init__(name, inner, size, groups)
        self.deltas = dict(deltas)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of every row by its own variant; the delta's part is added in float32."""
        outputs = self.inner(inputs)
        for variant, item in self.deltas.items():
            rows = self.rows(inputs, self.groups[variant])
            added = outputs[rows].float() + delta_product(item, inputs[rows].float())
            outputs.index_copy_(0, rows, added.to(outputs.dtype))
        return outputs


class SwappedRows(_PerRequest):
    """Any other layer (embeddings, norms, layers of exact codes): every variant's rows with its own parameters.

    Args:
        name: name of the layer, for messages.
        inner: what gives the outputs of all other rows: the base's layer, or a `BitDeltaLinear` of it.
        size: requests of the batch.
        groups: rows of the batch by variant.
        layer: the base's layer, which stays as it is.
        parameters: fine-tuned parameters by variant and name.
    """

    def __init__(
        self,
        name: str,
        inner: nn.Module,
        size: int,
        groups: Groups,
        layer: nn.Module,
        parameters: Mapping[str, dict[str, Tensor]],
    ) -> None:
        super().__init__(name, inner, size, groups)
        self.layer = layer
        # Not as parameters of this module: they are no part of the model.
        self.swapped = dict(parameters)

    def forward(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the outputs of every row by its own variant."""
        outputs = self.inner(inputs, *args, **kwargs)
        for variant, parameters in self.swapped.items():
            rows = self.rows(inputs, self.groups[variant])
            found = functional_call(self.layer, parameters, (inputs[rows], *args), kwargs)
            outputs.index_copy_(0, rows, found)
        return outputs

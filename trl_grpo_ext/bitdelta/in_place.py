"""A delta put on a model in memory: every tensor checked before the first weight changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trl_grpo_ext.bitdelta.errors import BitDeltaError, WrongBaseError
from trl_grpo_ext.bitdelta.headers import NAMES
from trl_grpo_ext.bitdelta.reading import Delta
from trl_grpo_ext.bitdelta.sources import Source


def apply_in_place(model: nn.Module, delta: Delta) -> nn.Module:
    """Replace a base's weights by the fine-tuned ones.

    Raises:
        WrongBaseError: the model is not the delta's base, or holds it in another dtype.
        BitDeltaError: the delta is damaged, or changes a shape.
    """
    held = dict(model.state_dict(keep_vars=True))
    # A checkpoint leaves tied tensors out, and the model has them under every name.
    source = _InMemory(held)
    check_in_place(delta, held)
    for name in delta.tensors:
        # Everything is checked before the first weight changes.
        delta.encoded(name)
        delta.base_tensor(name, source)
    with torch.no_grad():
        for name in delta.tensors:
            if delta.tensors[name].codec != "none":
                held[name].copy_(delta.tensor(name, source).to(held[name].device))
    return model


def check_in_place(delta: Delta, held: Mapping[str, Any]) -> None:
    """Check that a model in memory can hold every tensor of a delta, in place.

    Raises:
        WrongBaseError: it has other tensors, or holds them in another dtype.
        BitDeltaError: the delta changes a shape.
    """
    for name, entry in delta.tensors.items():
        if name not in held:
            raise WrongBaseError(f"{name}: the model has no such tensor. Load the delta with from_pretrained instead.")
        if entry.base is None or list(held[name].shape) != entry.base["shape"] or entry.base["shape"] != entry.shape:
            raise BitDeltaError(
                f"{name}: the delta changes its shape to {entry.shape}, which a model in memory can't follow. Load the "
                "delta with from_pretrained instead."
            )
        dtype = NAMES[held[name].dtype]
        if dtype != entry.base["dtype"] or dtype != entry.dtype:
            raise WrongBaseError(
                f"{name}: the model holds it as {dtype}, the base as {entry.base['dtype']} and the fine-tuned model as "
                f"{entry.dtype}. Load the base in its own dtype, or the delta with from_pretrained."
            )


class _InMemory(Source):
    """The tensors of a model, as they are."""

    def __init__(self, held: Mapping[str, Any]) -> None:
        super().__init__("the model")
        self._held = held

    def names(self) -> list[str]:
        return list(self._held)

    def tensor(self, name: str) -> Tensor:
        return self._held[name].detach().cpu()

    def meta(self, name: str) -> tuple[str, list[int]]:
        return NAMES[self._held[name].dtype], list(self._held[name].shape)

"""`DeltaModel`: many variants over one base, by swapping them in or unmerged in one batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trl_grpo_ext.bitdelta.auto import dtype_argument
from trl_grpo_ext.bitdelta.errors import BitDeltaError
from trl_grpo_ext.bitdelta.in_place import check_in_place
from trl_grpo_ext.bitdelta.reading import Delta
from trl_grpo_ext.bitdelta.resident import Packed, Resident, resident
from trl_grpo_ext.bitdelta.sources import open_source
from trl_grpo_ext.bitdelta.unmerged import BitDeltaLinear, Groups, SwappedRows

# Configurations of a mixture of experts: its layers see tokens, not the rows of a batch.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


class DeltaModel:
    """One base model on the CPU and any number of deltas of it, packed.

        served = DeltaModel("base").load("anna", "delta-a").load("ben", "delta-b")
        served.activate("anna").generate(...)              # the whole model becomes Anna's
        with served.batch(["anna", "ben", None]) as model:  # row by row, None is the base
            model(input_ids)

    Swapping writes the weights in place, always from the base's own copy on disk, so that nothing drifts. A batch leaves
    the weights alone, and computes x W^T + x D_i^T; it is slower by a request, and exact where bf16 weights would round a
    small delta away. Tensors of exact codes are made whole for the time of a batch, one per variant.

    Args:
        base: folder or hub id of the base.
        revision: commit of the base on the hub.
        **kwargs: of `from_pretrained`; the dtype is the checkpoint's own.

    Attributes:
        model: the live model.
        active: name of the variant in its weights; None for the base.

    Raises:
        BitDeltaError: the base can't be read, or is quantised.
    """

    def __init__(self, base: str | os.PathLike[str], revision: str | None = None, **kwargs: Any) -> None:
        from transformers import AutoModelForCausalLM

        if isinstance(base, nn.Module):
            raise ValueError("DeltaModel: base must be a folder or hub id; swaps are made from its files.")
        self.source = open_source(base, revision)
        kwargs = {dtype_argument(): "auto", **kwargs}
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.source.folder, **kwargs).eval()
        self.active: str | None = None
        self._variants: dict[str, dict[str, Resident]] = {}
        self._held: dict[str, Tensor] = dict(self.model.state_dict(keep_vars=True))

    @property
    def names(self) -> list[str]:
        """Names of the variants."""
        return list(self._variants)

    def nbytes(self, name: str) -> int:
        """Return the bytes that a variant takes in memory.

        Raises:
            BitDeltaError: no variant of this name.
        """
        return sum(part.nbytes for part in self._variant(name).values())

    def load(self, name: str, delta: str | os.PathLike[str]) -> DeltaModel:
        """Read a delta into memory, checked whole.

        Raises:
            WrongBaseError: it is of another base.
            BitDeltaError: it is damaged, its name is taken, or it changes shapes.
        """
        if name in self._variants:
            raise BitDeltaError(f"load: there is a variant {name!r} already; unload it, or take another name.")
        opened = Delta(delta)
        opened.check_base(self.source)
        check_in_place(opened, self._held)
        found = ((tensor, resident(opened, tensor, self.source)) for tensor in opened.tensors)
        self._variants[name] = {tensor: part for tensor, part in found if part is not None}
        return self

    def unload(self, name: str) -> None:
        """Forget a variant; the base takes its place if it is active.

        Raises:
            BitDeltaError: no variant of this name.
        """
        self._variant(name)
        if self.active == name:
            self.activate(None)
        del self._variants[name]

    @torch.no_grad()
    def activate(self, name: str | None) -> Any:
        """Write a variant into the model's weights, or the base again with None; return the model.

        Raises:
            BitDeltaError: no variant of this name.
        """
        wanted = self._variant(name) if name is not None else {}
        if name == self.active:
            return self.model
        current = self._variants[self.active] if self.active is not None else {}
        for tensor, part in current.items():
            # What the next variant writes whole needs no undoing.
            if not isinstance(wanted.get(tensor), Packed):
                part.undo(self._held[tensor], self.source.tensor(tensor))
        for tensor, part in wanted.items():
            part.write(self._held[tensor], self.source.tensor(tensor))
        self.active = name
        return self.model

    @contextmanager
    def batch(self, names: Sequence[str | None]) -> Iterator[Any]:
        """Give the model with another variant for every row of a batch; None is the base.

        Rows may be repeated by generation (`num_return_sequences`), all requests alike.

        Raises:
            BitDeltaError: no variant of a name, or a mixture of experts.
        """
        variants = {name: self._variant(name) for name in names if name is not None}
        if any(getattr(self.model.config, key, None) for key in EXPERTS):
            raise BitDeltaError(
                "batch: a mixture of experts mixes the rows of a batch; activate one variant at a time."
            )
        groups = {variant: [row for row, name in enumerate(names) if name == variant] for variant in variants}
        active = self.active
        self.activate(None)
        replaced = self._replacements(variants, groups, len(names))
        try:
            for place, (_, layer) in replaced.items():
                self.model.set_submodule(place, layer)
            yield self.model
        finally:
            for place, (inner, _) in replaced.items():
                self.model.set_submodule(place, inner)
            self.activate(active)

    def _variant(self, name: str) -> dict[str, Resident]:
        if name not in self._variants:
            known = ", ".join(self._variants) or "none"
            raise BitDeltaError(f"there is no variant {name!r}; loaded: {known}.")
        return self._variants[name]

    def _replacements(
        self, variants: Mapping[str, dict[str, Resident]], groups: Groups, size: int
    ) -> dict[str, tuple[nn.Module, nn.Module]]:
        """Return the layers that a batch runs on, beside the ones that they stand for, by place."""
        changed = {tensor for parts in variants.values() for tensor in parts}
        # By identity: a tied tensor has one name in a delta, and several in the model.
        names = {id(self._held[tensor]): tensor for tensor in changed}
        found = {}
        for place, layer in self.model.named_modules():
            own = {key: names[id(item)] for key, item in layer.named_parameters(recurse=False) if id(item) in names}
            if own and any(True for _ in layer.children()):
                raise BitDeltaError(
                    f"batch: {place} has parameters beside its layers'; activate one variant at a time."
                )
            if own:
                found[place] = (layer, self._per_request(place, layer, own, variants, groups, size))
        return found

    def _per_request(
        self,
        place: str,
        layer: nn.Module,
        own: Mapping[str, str],
        variants: Mapping[str, dict[str, Resident]],
        groups: Groups,
        size: int,
    ) -> nn.Module:
        """Return the layer with a delta for every request; `own` are its parameters with their names in a delta."""
        packed: dict[str, Packed] = {}
        if type(layer) is nn.Linear:
            found = {name: parts.get(own.get("weight", "")) for name, parts in variants.items() if "bias" not in own}
            packed = {name: part for name, part in found.items() if isinstance(part, Packed)}
        made = {
            name: {key: self._made(parts[tensor], tensor) for key, tensor in own.items() if tensor in parts}
            for name, parts in variants.items()
            if name not in packed
        }
        inner = layer
        if isinstance(layer, nn.Linear) and packed:
            inner = BitDeltaLinear(place, layer, size, groups, {name: part.item for name, part in packed.items()})
        swapped = {name: parameters for name, parameters in made.items() if parameters}
        return SwappedRows(place, inner, size, groups, layer, swapped) if swapped else inner

    @torch.no_grad()
    def _made(self, part: Resident, tensor: str) -> Tensor:
        base = self.source.tensor(tensor)
        whole = base.clone()
        part.write(whole, base)
        return whole

"""Deltas kept in memory, in the form that a swap writes from: patches of exact codes, packed lossy codes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trl_grpo_ext.bitdelta.codecs import LOSSY, Encoded, add_delta
from trl_grpo_ext.bitdelta.exact import different_places
from trl_grpo_ext.bitdelta.headers import DTYPES
from trl_grpo_ext.bitdelta.reading import Delta
from trl_grpo_ext.bitdelta.sources import Source


@dataclass(frozen=True)
class Packed:
    """A lossy code as it is stored."""

    item: Encoded

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.item.nbytes

    def write(self, target: Tensor, base: Tensor) -> None:
        """Write the fine-tuned tensor over whatever stands in `target`."""
        add_delta(self.item, base, target)

    def undo(self, target: Tensor, base: Tensor) -> None:
        """Write the base's tensor where the fine-tuned one stands."""
        target.copy_(base)


@dataclass(frozen=True)
class Patch:
    """The weights that changed: where, and their values; all of an exact code that a swap needs.

    Args:
        places: places in the flat tensor, int32 [n] (int64 in tensors of more than 2^31 weights).
        values: the fine-tuned weights there, [n].
    """

    places: Tensor
    values: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(part.numel() * part.element_size() for part in (self.places, self.values))

    def write(self, target: Tensor, base: Tensor) -> None:
        """Turn the base's tensor into the fine-tuned one."""
        target.view(-1).index_copy_(0, self.places.long(), self.values)

    def undo(self, target: Tensor, base: Tensor) -> None:
        """Turn the fine-tuned tensor into the base's."""
        target.view(-1).index_copy_(0, self.places.long(), base.reshape(-1).index_select(0, self.places))


@dataclass(frozen=True)
class Whole:
    """A tensor most of which changed."""

    tensor: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.tensor.numel() * self.tensor.element_size()

    def write(self, target: Tensor, base: Tensor) -> None:
        """Write the fine-tuned tensor."""
        target.copy_(self.tensor)

    def undo(self, target: Tensor, base: Tensor) -> None:
        """Write the base's tensor."""
        target.copy_(base)


Resident = Packed | Patch | Whole


def resident(delta: Delta, name: str, source: Source) -> Resident | None:
    """Return a tensor's delta as it is kept in memory; None where nothing changed.

    Raises:
        WrongBaseError, DamagedDeltaError: with the tensor's name.
    """
    entry = delta.tensors[name]
    base = delta.base_tensor(name, source)
    item = delta.encoded(name)
    if entry.codec == "none" or base is None:
        return None
    if entry.codec in LOSSY:
        # Of their own: mapped files go away with the folder.
        return Packed(Encoded(item.codec, {part: tensor.clone() for part, tensor in item.parts.items()}, item.params))
    tuned = delta.tensor(name, source)
    flat, places = tuned.reshape(-1), different_places(base.to(DTYPES[entry.dtype]), tuned)
    patch = Patch(places, flat[places])
    whole = Whole(tuned.clone())
    return patch if patch.nbytes < whole.nbytes else whole

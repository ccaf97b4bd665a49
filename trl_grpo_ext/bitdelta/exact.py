"""Exact codes of a tensor, and what the ladder must know of it beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from trl_grpo_ext.bitdelta.codecs import Encoded, as_base
from trl_grpo_ext.bitdelta.errors import TensorError
from trl_grpo_ext.bitdelta.sparse import estimated_bytes, sparse_code

# Weights compared at a time: what a core's cache holds of both sides.
COMPARED = 1 << 18


@dataclass
class Choice:
    """A coded tensor, and how it was chosen.

    Args:
        item: the code.
        density: share of the weights whose bits changed; 1 where the shapes differ.
        kappa: share of the energy that one sign mask explains; None where no sign code was tried.
        explained: share of the energy that the stored code explains before its scales are fitted to inputs; 1 exact.
        fit: "mean" or "activation"; None for codes without scales.
        reason: why this codec, in one sentence.
    """

    item: Encoded
    density: float
    kappa: float | None
    explained: float
    fit: str | None
    reason: str


@dataclass
class Attempt:
    """A codec with the bytes that it is expected to take."""

    nbytes: float
    make: Callable[[], Choice | None]


def check_finite(name: str, side: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        TensorError: with the tensor's name.
    """
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        return
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), 1 << 22):
        part = flat[start : start + (1 << 22)]
        # NaN and infinity stay in a sum, which is one pass; only a sum that overflowed needs the second look.
        wide = torch.float32 if part.dtype == torch.float16 else None
        if not bool(torch.isfinite(part.sum(dtype=wide))) and not bool(torch.isfinite(part).all()):
            raise TensorError(
                f"{name}: the {side} tensor holds NaN or infinity. Compress an earlier checkpoint, from before the "
                "training diverged."
            )


def _bits(tensor: Tensor) -> numpy.ndarray:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(kinds[tensor.element_size()]).numpy()


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors of one dtype and shape have the same bits."""
    return bool((_bits(first.reshape(-1)) == _bits(second.reshape(-1))).all())


def different_places(first: Tensor, second: Tensor) -> Tensor:
    """Return where two tensors of one dtype and shape have other bits, int32 or int64 places in the flat tensor [n]."""
    places = numpy.flatnonzero(_bits(first.reshape(-1)) != _bits(second.reshape(-1)))
    return torch.from_numpy(places.astype(numpy.int32) if first.numel() < 1 << 31 else places)


def changed_rows(base: Tensor, tuned: Tensor) -> tuple[int, Tensor]:
    """Return how many weights have other bits, and which rows [n] hold them; both [rows, ...] of one dtype."""
    if not tuned.numel():
        return 0, torch.empty(0, dtype=torch.int64)
    count, rows = 0, []
    first, second = (_bits(tensor.reshape(len(tensor), -1)) for tensor in (base, tuned))
    step = max(1, COMPARED // max(first.shape[1], 1))
    # numpy compares and counts several times faster than torch does.
    buffer = numpy.empty((min(step, len(first)), first.shape[1]), dtype=bool)
    for start in range(0, len(first), step):
        part = second[start : start + step]
        different = numpy.not_equal(first[start : start + step], part, out=buffer[: len(part)])
        count += int(numpy.count_nonzero(different))
        rows.append(_rows_with_any(different) + start)
    return count, torch.from_numpy(numpy.concatenate(rows))


def _rows_with_any(different: numpy.ndarray) -> numpy.ndarray:
    """Return the rows [n] with a true value; in dense deltas the first columns tell of nearly all of them."""
    found: numpy.ndarray = numpy.asarray(different[:, :64].any(1))
    unknown = numpy.flatnonzero(~found)
    found[unknown] = different[unknown].any(1)
    return numpy.flatnonzero(found)


def unchanged() -> Choice:
    """Return the code of a tensor that did not change."""
    return Choice(Encoded("none"), 0.0, None, 1.0, None, "no weight changed")


def raw(tuned: Tensor, reason: str) -> Choice:
    """Return the tensor itself as its code."""
    return Choice(Encoded("raw", {"value": tuned.contiguous()}), 1.0, None, 1.0, None, reason)


def replaced_rows(tuned: Tensor, rows: Tensor, reason: str) -> Choice:
    """Return the code of a tensor of which these rows [n] are stored."""
    return Choice(Encoded("rows", {"index": rows, "value": tuned[rows]}), 1.0, None, 1.0, None, reason)


def other_shape(base: Tensor, tuned: Tensor) -> Choice:
    """Code a tensor whose shape changed: rows where only their number did (a resized vocabulary)."""
    if base.ndim != tuned.ndim or tuned.ndim < 2 or base.shape[1:] != tuned.shape[1:]:
        return raw(tuned, f"its shape {list(base.shape)} became {list(tuned.shape)}")
    common = min(len(base), len(tuned))
    _, rows = changed_rows(as_base(base[:common], tuned.dtype), tuned[:common])
    rows = torch.cat([rows, torch.arange(common, len(tuned))])
    return replaced_rows(tuned, rows, f"{len(base)} rows became {len(tuned)}; {len(rows)} are stored")


def exact_attempts(base: Tensor, tuned: Tensor, count: int, rows: Tensor) -> list[Attempt]:
    """Return the exact codes of a tensor of which `count` weights, in these rows, changed; both of one dtype."""
    width = tuned.element_size()
    whole = tuned.numel() * width

    def sparse() -> Choice | None:
        code = sparse_code(base.reshape(-1), tuned.reshape(-1))
        if code.nbytes >= whole:
            return None
        parts = {"data": code.data, "lengths": code.lengths}
        reason = f"{count / tuned.numel():.1%} of the weights changed; kept without loss"
        return Choice(Encoded("sparse", parts), 1.0, None, 1.0, None, reason)

    attempts = [Attempt(whole, lambda: raw(tuned, "every weight changed; kept without loss"))]
    estimate = estimated_bytes(tuned.numel(), count) if width == 2 else tuned.numel() / 8 + count * width
    attempts.append(Attempt(min(estimate + 64, whole - 1), sparse))
    if tuned.ndim >= 2 and len(rows) < len(tuned):
        nbytes = len(rows) * (8 + tuned[0].numel() * width)
        reason = f"{len(rows)} of {len(tuned)} rows changed; kept without loss"
        attempts.append(Attempt(nbytes, lambda: replaced_rows(tuned, rows, reason)))
    return attempts

"""Errors of delta compression. Each message names the tensor or the file, what is wrong with it and the way out."""

from __future__ import annotations


class BitDeltaError(RuntimeError):
    """A delta can't be made, read or applied; nothing was written."""


class DamagedDeltaError(BitDeltaError):
    """The delta's files are truncated, tampered with, incomplete, or of an unknown format version."""


class WrongBaseError(BitDeltaError):
    """The base at hand is not the one that the delta was made against."""


class TensorError(BitDeltaError):
    """A tensor can't be compressed: it holds NaN or infinity, or the checkpoints can't be compared."""

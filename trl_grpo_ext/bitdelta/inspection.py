"""`inspect`: what a delta's folder says, with its structure checked and no weight read."""

from __future__ import annotations

import os

from trl_grpo_ext.bitdelta.reading import Delta
from trl_grpo_ext.bitdelta.report import DeltaReport


def inspect(delta: str | os.PathLike[str]) -> DeltaReport:
    """Return the report of a delta.

    Raises:
        BitDeltaError: the folder holds no delta, or a damaged one.
    """
    return DeltaReport(Delta(delta).table)

"""Whether log-probabilities of a cheaper form are those of the plain one; every rank comes to the same answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Nats. The largest difference of a log-probability in float32, and the mean difference in 16 bits.
TOLERANCE = 1e-3
TOLERANCE_16_BITS = 5e-2


def difference(accelerator: Any, model: Any, ours: torch.Tensor, theirs: torch.Tensor, where: str) -> str | None:
    """Return in words how far log-probabilities are from TRL's; None where they are near enough on every rank.

    Args:
        accelerator: gathers over the ranks, so that all must call it.
        model: its parameters' type, and the accelerator's precision, decide what is near.
        ours: any shape; empty is near.
        theirs: as `ours`.
        where: begins the text, `on the first micro-batch` for one.
    """
    differences = (theirs.float() - ours.float()).abs()
    short = accelerator.mixed_precision != "no" or next(model.parameters()).dtype.itemsize < 4
    limit = TOLERANCE_16_BITS if short else TOLERANCE
    found = differences.new_zeros(1)
    if differences.numel():
        found = (differences.mean() if short else differences.max()).reshape(1)
    worst = accelerator.gather(found).max().item()
    if worst <= limit:
        return None
    return f"{where} its log-probabilities differ from TRL's by {worst:.3g} nats (limit {limit:g})"


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout, and with the mode of every module as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

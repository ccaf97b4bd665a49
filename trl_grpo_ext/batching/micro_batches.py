"""Leave the rows of a micro-batch out that have no gradient."""

from typing import Any

import torch

_MEAN_OVER_ROWS = frozenset({"grpo", "dr_grpo", "sapo", "luspo"})


def without_zero_advantages(accelerator: Any, batch: dict[str, Any], loss_type: str) -> dict[str, Any]:
    """Return the micro-batch without rows of advantage 0, whose policy loss has no gradient.

    Every rank keeps the same number of rows, at least one, because TRL gathers values of rows: the most that any rank
    needs. `loss_scale` makes up for the rows, or with `bnpo` the tokens, that a mean no longer divides by.

    Args:
        accelerator: gathers over the ranks.
        batch: a micro-batch of TRL, with `advantages` (rows,).
        loss_type: TRL's.
    """
    zero = batch["advantages"] == 0
    needed = accelerator.gather((~zero).sum().reshape(1)).max()
    kept = zero.to(torch.int8).argsort(stable=True)[: max(int(needed), 1)]
    if len(kept) == len(zero):
        return batch
    kept = kept.sort().values
    smaller = {name: _part(value, kept, len(zero)) for name, value in batch.items()}
    scale = _loss_scale(batch, smaller, loss_type)
    return smaller | {"loss_scale": torch.as_tensor(scale * batch.get("loss_scale", 1.0), device=zero.device)}


def _part(value: Any, kept: torch.Tensor, rows: int) -> Any:
    return value[kept] if torch.is_tensor(value) and value.dim() and len(value) == rows else value


def _loss_scale(batch: dict[str, Any], smaller: dict[str, Any], loss_type: str) -> Any:
    if loss_type in _MEAN_OVER_ROWS:
        return len(smaller["advantages"]) / len(batch["advantages"])
    if loss_type == "bnpo":
        tokens = [(part["completion_mask"] * part.get("tool_mask", 1)).sum() for part in (smaller, batch)]
        return tokens[0].clamp(min=1) / tokens[1].clamp(min=1)
    return 1.0

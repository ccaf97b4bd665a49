"""Trim a micro-batch to its own longest prompt and completion; TRL pads to the longest of the whole generation."""

from typing import Any

import torch

COMPLETION_COLUMNS = (
    *("completion_ids", "completion_mask", "tool_mask", "old_per_token_logps", "ref_per_token_logps"),
    *("sampling_per_token_logps", "importance_sampling_ratio"),
)


def trimmed(batch: dict[str, Any], prompts: bool = True) -> dict[str, Any]:
    """Return the micro-batch without the columns that are padding in every row.

    Args:
        batch: a micro-batch of TRL: prompts padded on the left, completions on the right.
        prompts: trim prompts too. A model with absolute positions counts them from the first column, so that for it
            a trimmed prompt is another prompt.

    Returns:
        A new dict; at least one column of prompt and one of completion stay.
    """
    width = batch["completion_ids"].shape[1]
    stop = _extent(batch["completion_mask"].any(0))
    shorter = {
        name: batch[name][:, :stop]
        for name in COMPLETION_COLUMNS
        # One value per sequence has one column.
        if batch.get(name) is not None and batch[name].shape[1] == width
    }
    if prompts:
        kept = _extent(batch["prompt_mask"].any(0).flip(0))
        shorter |= {name: batch[name][:, -kept:] for name in ("prompt_ids", "prompt_mask")}
    return batch | shorter


def _extent(used: torch.Tensor) -> int:
    """One more than the index of the last True, at least 1."""
    columns = torch.arange(1, len(used) + 1, device=used.device)
    return max(int((columns * used).max()), 1)

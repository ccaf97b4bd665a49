"""Trim a micro-batch to its own longest prompt and completion; TRL pads to the longest of the whole generation."""

from typing import Any

import torch

from trl_grpo_ext.batching.support import frequencies_of_the_length, moves_with_its_positions

_PROMPT_COLUMNS = ("prompt_ids", "prompt_mask")


def trimmed(batch: dict[str, Any], config: Any) -> dict[str, Any]:
    """Return the micro-batch without the columns that are padding in every row, where that changes nothing.

    A model with absolute positions counts them from the first column, so that for it a trimmed prompt is another
    prompt: its prompts stay. For rotary frequencies that depend on the length of the batch everything stays.

    Args:
        batch: a micro-batch of TRL: prompts padded on the left, completions on the right. Every value with one column
            per token of the completions is cut.
        config: the model's.

    Returns:
        A new dict; at least one column of prompt and one of completion stay.
    """
    if frequencies_of_the_length(config):
        return batch
    size = batch["completion_ids"].shape
    stop = _extent(batch["completion_mask"].any(0))
    shorter = {
        name: value[:, :stop]
        for name, value in batch.items()
        if torch.is_tensor(value) and value.shape[:2] == size and name not in _PROMPT_COLUMNS
    }
    if moves_with_its_positions(config):
        kept = _extent(batch["prompt_mask"].any(0).flip(0))
        shorter |= {name: batch[name][:, -kept:] for name in _PROMPT_COLUMNS}
    return batch | shorter


def _extent(used: torch.Tensor) -> int:
    """One more than the index of the last True, at least 1."""
    columns = torch.arange(1, len(used) + 1, device=used.device)
    return max(int((columns * used).max()), 1)

"""Keep the rows of a group together in the micro-batches of a generation; TRL shuffles rows."""

from collections.abc import Sequence
from typing import Any

import torch

from trl_grpo_ext.batching.shared_prompt import owners


def regrouped(batches: Sequence[dict[str, Any]], window: int, by_length: bool) -> list[dict[str, Any]]:
    """Deal the rows of a generation's micro-batches out again, group by group.

    Groups stand in the order in which TRL's shuffle brings up their first rows: the shuffle of rows becomes one of
    groups, and no random number is drawn. Rows with the same prompt are a group.

    Args:
        batches: the micro-batches, equal in rows.
        window: micro-batches of one optimizer step.
        by_length: order the groups inside an optimizer step, and the rows inside a group, from long to short.
    """
    rows = len(batches[0]["completion_ids"])
    merged = {name: _merged([batch[name] for batch in batches]) for name in batches[0]}
    order = group_order(merged["prompt_ids"], merged["prompt_mask"])
    if by_length:
        order = _ordered_by_length(order, merged, window * rows)
    return [_taken(merged, part) for part in order.split(rows)]


def group_order(prompt_ids: torch.Tensor, prompt_mask: torch.Tensor) -> torch.Tensor:
    """Return the permutation that brings rows of equal prompts together, in the order of their first rows."""
    first, owner = owners(prompt_ids, prompt_mask)
    return first[owner].argsort(stable=True)


def _ordered_by_length(order: torch.Tensor, merged: dict[str, Any], window_rows: int) -> torch.Tensor:
    lengths = merged["completion_mask"].sum(1)[order]
    first, owner = owners(merged["prompt_ids"], merged["prompt_mask"])
    groups = owner[order]
    parts = zip(order.split(window_rows), lengths.split(window_rows), groups.split(window_rows), strict=True)
    ordered = []
    for rows, length, group in parts:
        longest = torch.zeros(len(first), dtype=length.dtype, device=length.device)
        longest = longest.scatter_reduce(0, group, length, "amax")[group]
        # The last key of successive stable sorts counts most.
        by = length.argsort(descending=True, stable=True)
        by = by[group[by].argsort(stable=True)]
        ordered.append(rows[by[longest[by].argsort(descending=True, stable=True)]])
    return torch.cat(ordered)


def _merged(values: list[Any]) -> Any:
    if isinstance(values[0], list):
        return [item for value in values for item in value]
    return torch.cat(values) if torch.is_tensor(values[0]) and values[0].dim() else values[0]


def _taken(merged: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    def part(value: Any) -> Any:
        if isinstance(value, list):
            return [value[row] for row in rows.tolist()]
        return value[rows] if torch.is_tensor(value) and value.dim() else value

    return {name: part(value) for name, value in merged.items()}

r"""One row that holds every distinct prompt of a micro-batch once, and all its completions.

    [prompt 1 less its last token | ... | prompt U less its last token | suffix 1 | ... | suffix R]

Suffix r is the last prompt token of row r and its completion less the last token, so that the T positions of a suffix
predict the T tokens of the completion. Each suffix attends to its own prompt and, causally, to itself. For G rows of
one prompt that is P + G C tokens in place of G (P + C) (Prefix Grouper, arXiv 2506.05433).
"""

from dataclasses import dataclass

import torch

# Suffixes that are together at most this share of their prompt stand in one row, which reads the prompt's keys once;
# longer ones are a row each, with a copy of the keys: on masked scores they would lose more than the copies cost.
PACKED_SHARE = 0.5


@dataclass(frozen=True)
class SharedLayout:
    """What the attention must know of the row.

    Args:
        prompts: number of distinct prompts, U.
        prefix: tokens of each prompt in the row, P - 1.
        owner: (R,), the prompt of each completion.
        length: tokens of each suffix, T.
        prefix_mask: (U, 1, P - 1, P - 1), bool: what a prompt token attends to; None where that is plain causal.
        suffix_mask: (R or 1, 1, T, P - 1 + T), bool; for packed suffixes, n of each prompt, (U, 1, n T, P - 1 + n T).
        order: (R,), the suffixes prompt by prompt, where they are packed; None where each is a row.
    """

    prompts: int
    prefix: int
    owner: torch.Tensor
    length: int
    prefix_mask: torch.Tensor | None
    suffix_mask: torch.Tensor
    order: torch.Tensor | None = None


@dataclass(frozen=True)
class SharedRow:
    """The inputs of the one `model(...)` call; `position_ids` are the columns that the tokens have in the batch."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    layout: SharedLayout


def owners(prompt_ids: torch.Tensor, prompt_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows (U,) in which a prompt stands first, and for every row (R,) the number of its prompt."""
    both = torch.stack([prompt_ids * prompt_mask, prompt_mask.to(prompt_ids)], dim=1)
    _, owner = torch.unique(both, dim=0, return_inverse=True)
    rows = torch.arange(len(owner), device=owner.device)
    first = torch.full((int(owner.max()) + 1,), len(owner), device=owner.device)
    return first.scatter_reduce(0, owner, rows, "amin"), owner


def shared_row(prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, completion_ids: torch.Tensor) -> SharedRow:
    """Lay out a micro-batch.

    Args:
        prompt_ids: (R, P), padded on the left, P >= 1.
        prompt_mask: (R, P).
        completion_ids: (R, T), padded on the right.
    """
    first, owner = owners(prompt_ids, prompt_mask)
    length, prefix, device = completion_ids.shape[1], prompt_ids.shape[1] - 1, prompt_ids.device
    suffixes = torch.cat([prompt_ids[:, -1:], completion_ids[:, :-1]], dim=1)
    columns = torch.arange(prefix + length, device=device)
    ids = torch.cat([prompt_ids[first, :-1].flatten(), suffixes.flatten()])
    positions = torch.cat([columns[:prefix].repeat(len(first)), columns[prefix:].repeat(len(owner))])
    order = _packed_order(owner, len(first), length, prefix)
    masks = _masks(prompt_mask[first, :-1].bool(), owner, length, order)
    return SharedRow(ids[None], positions[None], SharedLayout(len(first), prefix, owner, length, *masks, order))


def _packed_order(owner: torch.Tensor, prompts: int, length: int, prefix: int) -> torch.Tensor | None:
    each = len(owner) // prompts
    even = bool((owner.bincount(minlength=prompts) == each).all())
    return owner.argsort(stable=True) if even and each > 1 and each * length <= PACKED_SHARE * prefix else None


def _masks(
    real: torch.Tensor, owner: torch.Tensor, length: int, order: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The masks of a layout; `real` (U, P - 1) are the prompt tokens that are not padding."""
    prefix, device = real.shape[1], real.device
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if order is not None:
        causal = torch.block_diag(*[causal] * (len(owner) // len(real)))
    if bool(real.all()):
        seen = torch.ones(len(causal), prefix, dtype=torch.bool, device=device)
        return None, torch.cat([seen, causal], dim=1)[None, None]
    own = torch.eye(prefix, dtype=torch.bool, device=device)
    # A padding token attends to itself: attention to nothing is NaN.
    within = (real[:, None, :] & torch.ones_like(own).tril()) | own
    rows = real if order is not None else real[owner]
    seen = rows[:, None, :].expand(-1, len(causal), -1)
    return within[:, None], torch.cat([seen, causal.expand(len(rows), -1, -1)], dim=-1)[:, None]

"""Matrix products of a forward and backward pass, counted from the shapes.

The dense form encodes every prompt with each of its completions, the shared form once. Every pair of tokens that
attention's matrix products cover is counted, masked or not, as `torch.utils.flop_counter` does; `costs.FlopCounter`
counts what is really called, and a test holds the two within 5 % of one another.
"""

from __future__ import annotations

from typing import Any

import torch

from trl_grpo_ext._compat import has_chunked_head
from trl_grpo_ext.batching.head import KEPT_ELEMENTS

CUDA = torch.cuda.is_available()


def lengths(completion: int, group: int) -> list[int]:
    """The spread of a group: from all tokens down to a quarter of them."""
    return torch.linspace(completion, completion / 4, group).round().long().tolist()


# Matrix products per token of the head: logits and two gradients; the logits again where they are not kept.
FEWEST, AGAIN = 3, 4


def stock_head_passes() -> int:
    """Those of stock TRL."""
    return AGAIN if has_chunked_head() else FEWEST


def our_head_passes(sizes: dict[str, Any], completion: int, group: int) -> float:
    """Those of ours, on average: what is above a bound is computed again."""
    kept = min(KEPT_ELEMENTS / (group * completion * sizes["vocab_size"]), 1.0)
    return AGAIN - (AGAIN - FEWEST) * kept


def scored_by_stock(prompt: int, completion: int, group: int) -> int:
    """Positions that TRL's own head computes; TRL >= 1.15 does so for the real ones on a GPU, for all elsewhere."""
    if not has_chunked_head():
        return group * (completion + 1)
    return sum(lengths(completion, group)) if CUDA else group * (prompt + completion - 1)


def flops(sizes: dict[str, Any], tokens: int, pairs: int, scored: int, passes: float = FEWEST) -> float:
    """Twice the multiply-adds: 3 products per weight of a layer, 2 + 5 for attention, `passes` for the head."""
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    projections = width * width * (2 + 2 * sizes["num_key_value_heads"] / heads)
    layer = 3 * tokens * (projections + 3 * width * sizes["intermediate_size"]) + 7 * pairs * width
    return 2.0 * (sizes["num_hidden_layers"] * layer + passes * scored * width * sizes["vocab_size"])


def dense(sizes: dict[str, Any], prompt: int, completion: int, group: int) -> float:
    """Of stock TRL, on one micro-batch of `group` rows with one prompt."""
    length = prompt + completion
    scored = scored_by_stock(prompt, completion, group)
    return flops(sizes, group * length, group * length * length, scored, stock_head_passes())


def shared(sizes: dict[str, Any], prompt: int, completion: int, group: int, passes: float) -> float:
    """Of the shared form on the same micro-batch."""
    prefix = prompt - 1
    pairs = prefix * prefix + group * completion * (prefix + completion)
    return flops(sizes, prefix + group * completion, pairs, group * completion, passes)


def limit(sizes: dict[str, Any], prompt: int, completion: int, group: int) -> float:
    """How many times less arithmetic the shared form does, with a head that computes nothing again."""
    return dense(sizes, prompt, completion, group) / shared(sizes, prompt, completion, group, FEWEST)

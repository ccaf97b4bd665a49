"""Attention over a shared row, as an attention function of transformers; all else goes to its own SDPA function."""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trl_grpo_ext.batching.shared_prompt import SharedLayout

NAME = "sdpa_shared_prompt"


def register() -> str:
    """Make the attention function known to transformers, and return its name."""
    AttentionInterface.register(NAME, shared_prompt_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def share(model: Any) -> None:
    """Let the layers of a model with SDPA attention attend as the `shared_layout` of a call says.

    It stays until `put_back`: under gradient checkpointing the backward pass runs the layers again.
    """
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(register())


def put_back(model: Any) -> None:
    """Undo `share`."""
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation("sdpa")


def shared_prompt_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    shared_layout: SharedLayout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as `shared_layout` says; without one, as SDPA.

    Args:
        module: the attention layer.
        query: (1, heads, tokens, head size) of a shared row.
        key: (1, key heads, tokens, head size).
        value: as `key`.
        attention_mask: not read where there is a layout.
        shared_layout: how the row is laid out.
        **kwargs: as SDPA's.

    Returns:
        (1, tokens, heads, head size), and None.
    """
    if shared_layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kwargs.pop("is_causal", None)
    edge = shared_layout.prompts * shared_layout.prefix
    found = []
    prompts = [_rows(part[:, :, :edge], shared_layout.prompts) for part in (query, key, value)]
    if edge:
        mask = shared_layout.prefix_mask
        found.append(sdpa_attention_forward(module, *prompts, mask, is_causal=mask is None, **kwargs)[0])
    suffixes = [_suffixes(part[:, :, edge:], shared_layout) for part in (query, key, value)]
    cached = prompts[1:] if shared_layout.order is not None else [part[shared_layout.owner] for part in prompts[1:]]
    keys, values = (torch.cat(parts, dim=2) for parts in zip(cached, suffixes[1:], strict=True))
    mask = shared_layout.suffix_mask
    output = sdpa_attention_forward(module, suffixes[0], keys, values, mask, is_causal=False, **kwargs)[0]
    found.append(_in_rows(output, shared_layout))
    return torch.cat([part.flatten(0, 1) for part in found])[None], None


def _rows(part: torch.Tensor, count: int) -> torch.Tensor:
    """(1, heads, count * length, size) to (count, heads, length, size)."""
    _, heads, tokens, size = part.shape
    return part.view(heads, count, tokens // count, size).transpose(0, 1)


def _suffixes(part: torch.Tensor, layout: SharedLayout) -> torch.Tensor:
    """(1, heads, R T, size) to (R, heads, T, size); of packed suffixes, (U, heads, n T, size)."""
    rows = _rows(part, len(layout.owner))
    if layout.order is None:
        return rows
    _, heads, _, size = rows.shape
    grouped = rows[layout.order].view(layout.prompts, -1, heads, layout.length, size)
    return grouped.transpose(1, 2).reshape(layout.prompts, heads, -1, size)


def _in_rows(output: torch.Tensor, layout: SharedLayout) -> torch.Tensor:
    """(U, n T, heads, size) of packed suffixes to (R, T, heads, size), in the order of the rows."""
    if layout.order is None:
        return output
    rows = output.reshape(len(layout.owner), layout.length, *output.shape[2:])
    return torch.empty_like(rows).index_copy(0, layout.order, rows)

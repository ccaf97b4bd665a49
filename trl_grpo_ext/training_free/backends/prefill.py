"""Each distinct prompt of a batch encoded once, and its cache expanded to the rows that share it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def can_share(model: Any) -> bool:
    """Return whether a model's cache keeps every token of every layer, so that rows of it can be copied.

    Not with sliding windows or linear attention, not of encoder-decoders and models with images, and not with
    learned prompts (PEFT), which stand before the first token.
    """
    config = model.config
    if config.is_encoder_decoder or config.get_text_config(decoder=True) is not config:
        return False
    if any(setting.is_prompt_learning for setting in getattr(model, "peft_config", {}).values()):
        return False
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


@torch.no_grad()
def shared_cache(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> DynamicCache | None:
    """Return the cache of all prompt tokens but the last, for every row; None where no two rows share a prompt.

    Args:
        model: for which `can_share`.
        ids: (B, P), padded on the left, with one padding token throughout.
        mask: (B, P).
    """
    distinct, owner = torch.unique(torch.cat([ids, mask], dim=1), dim=0, return_inverse=True)
    if len(distinct) == len(ids) or ids.shape[1] < 2:
        return None
    ids, mask = distinct.chunk(2, dim=1)
    cache = DynamicCache(config=model.config)
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    given = {"position_ids": positions[:, :-1], "logits_to_keep": 1}
    taken = inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters
    given = {name: value for name, value in given.items() if name in taken}
    model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache, use_cache=True, **given)
    if cache.get_seq_length() != ids.shape[1] - 1:
        return None
    cache.batch_select_indices(owner)
    return cache

"""Encode each distinct prompt of a `generate` call once, and go on with its cache expanded to all its rows."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from trl_grpo_ext.batching import support
from trl_grpo_ext.batching.methods import Method, replaced_method
from trl_grpo_ext.batching.shared_prompt import owners
from trl_grpo_ext.batching.verification import difference

_INPUTS = frozenset({"input_ids", "attention_mask", "generation_config", "disable_compile"})
# Options of a generation config that ask for another way of decoding, or of keeping the cache; with the value that
# means "off". Unset ones are None.
_PLAIN: dict[str, Any] = {
    **{"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "cache_implementation": None},
    **{"prefill_chunk_size": None, "prompt_lookup_num_tokens": None, "penalty_alpha": None, "dola_layers": None},
    **{"guidance_scale": 1.0, "token_healing": False},
}


class SharedPrefill:
    """Gives a model's own `generate` the cache of its prompts, each of them encoded once.

    The tokens are those that `generate` finds by itself with the same random numbers. In the first generation the
    log-probabilities of the first token are compared with the plain ones; where they differ by more than
    `verification.TOLERANCE`, a warning says so and every prompt is encoded for each of its rows, as TRL does.

    Args:
        accelerator: the trainer's.
        wanted: do it.
        asked: the user asked for it: say why, where it can't be done.
        other_engine: what generates in place of the model, if anything does.
    """

    def __init__(self, accelerator: Any, wanted: bool, asked: bool, other_engine: str | None = None) -> None:
        self.accelerator, self.asked = accelerator, asked
        self._wanted, self._verified = wanted, False
        reason = other_engine and f"{other_engine} generates, and shares prompts in its own way"
        reason = reason or support.sharded_reason(accelerator)
        if wanted and reason:
            self._fall_back(reason, loudly=asked)

    @contextmanager
    def during(self, model: Any) -> Iterator[None]:
        """Let `model.generate` share prompts inside the block.

        Args:
            model: a transformers or PEFT model, without the wrappers of accelerate.
        """
        if not self._wanted:
            yield
            return
        with replaced_method(model, "generate", lambda own: self._sharing(model, own)):
            yield

    def _sharing(self, model: Any, own: Method) -> Callable[..., Any]:
        def generate(*args: Any, **kwargs: Any) -> Any:
            cache = self._cache(model, kwargs) if self._wanted and not args else None
            return own(*args, **kwargs) if cache is None else own(**kwargs, past_key_values=cache)

        return generate

    @torch.no_grad()
    def _cache(self, model: Any, call: dict[str, Any]) -> DynamicCache | None:
        reason, loudly = no_prefill_because(model, call), self.asked
        if reason is None and not self._verified:
            reason, loudly = self._difference(model, call["input_ids"], call["attention_mask"]), True
            self._verified = reason is None
        if reason is not None:
            self._fall_back(reason, loudly)
            return None
        first, owner = owners(call["input_ids"], call["attention_mask"])
        return prefilled(model, call["input_ids"], call["attention_mask"]) if len(first) < len(owner) else None

    def _difference(self, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> str | None:
        theirs = _next_logps(model, ids, mask)
        cache = prefilled(model, ids, mask)
        ours = theirs[:0] if cache is None else _next_logps(model, ids, mask, cache)
        return difference(
            self.accelerator, model, ours, theirs[: len(ours)], "in the first generation, for the first token,"
        )

    def _fall_back(self, reason: str, loudly: bool) -> None:
        self._wanted = False
        if loudly:
            warnings.warn(
                f"shared_prefill is not used: {reason}. Every prompt is encoded for each of its completions, as TRL "
                "does.",
                stacklevel=2,
            )


def no_prefill_because(model: Any, call: dict[str, Any]) -> str | None:
    """Return why a call of `generate` must encode every row by itself; None if it need not.

    Args:
        model: a transformers or PEFT model.
        call: the keywords of the call.
    """
    config = support.bare_model(model).config
    others = sorted(name for name in call if name not in _INPUTS)
    if others or not {"input_ids", "attention_mask"} <= call.keys():
        return f"generate is given {', '.join(others) or 'no attention_mask'}"
    if config.is_encoder_decoder or config.get_text_config(decoder=True) is not config:
        return f"a model of type {config.model_type!r} is no text-only decoder"
    layers = DynamicCache(config=config).layers
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return "its cache does not keep every token of every layer (sliding window, linear attention)"
    return support.peft_reason(model) or support.dropout_reason(model) or _decoding_reason(model, call)


def prefilled(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> DynamicCache | None:
    """Return the cache of all prompt tokens but the last, for every row, with each distinct prompt encoded once.

    Args:
        model: a transformers or PEFT model.
        ids: (rows, P), padded on the left.
        mask: (rows, P).

    Returns:
        None where there is nothing to keep: prompts of one token, or a model that keeps no cache, as some do under
        gradient checkpointing.
    """
    first, owner = owners(ids, mask)
    cache = DynamicCache(config=support.bare_model(model).config)
    if ids.shape[1] > 1:
        ends = slice(None, -1)
        _forward(model, ids[first, ends], mask[first, ends], _positions(mask[first])[:, ends], cache)
    if ids.shape[1] == 1 or cache.get_seq_length() != ids.shape[1] - 1:
        return None
    cache.batch_select_indices(owner)
    return cache


def _next_logps(model: Any, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
    begin = 0 if cache is None else ids.shape[1] - 1
    logits = _forward(model, ids[:, begin:], mask, _positions(mask)[:, begin:], cache).logits
    return logits[:, -1].float().log_softmax(-1)


def _forward(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: DynamicCache | None
) -> Any:
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": cache is not None}
    extra = {"position_ids": positions, "logits_to_keep": 1}
    inputs |= {name: value for name, value in extra.items() if support.takes(model, name)}
    return model(**inputs, past_key_values=cache)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """The positions that `generate` counts: from the first token that is not padding."""
    return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)


def _decoding_reason(model: Any, call: dict[str, Any]) -> str | None:
    configs = (call.get("generation_config"), support.bare_model(model).generation_config)
    for name, off in _PLAIN.items():
        value = next((found for config in configs if (found := getattr(config, name, None)) is not None), off)
        if value != off:
            return f"the generation config has {name}={value!r}"
    return None

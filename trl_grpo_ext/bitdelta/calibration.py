"""Inputs of linear layers, from one forward pass over prompts: what scales are fitted to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trl_grpo_ext.bitdelta.sources import Checkpoint

# 512 tokens determine one number per row well, and a 7 B model's inputs take about 1 GB.
TOKENS = 512
BATCH = 8
MOST_PROMPT_TOKENS = 1024


class _Collector:
    """Keeps evenly spaced positions of what every linear layer sees; layers with one input share one copy."""

    def __init__(self, model: nn.Module, quota: int) -> None:
        self.quota = quota
        self.mask: Tensor | None = None
        self.kept: dict[str, list[Tensor]] = {}
        self._last: tuple[Tensor, Tensor] | None = None
        self._hooks = [
            module.register_forward_pre_hook(self._hook(f"{name}.weight"))
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        ]

    def _hook(self, name: str) -> Any:
        def keep(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments and isinstance(arguments[0], Tensor):
                self.kept.setdefault(name, []).append(self._selected(arguments[0]))

        return keep

    def _selected(self, given: Tensor) -> Tensor:
        if self._last is not None and self._last[0] is given:
            return self._last[1]
        rows = given.detach()
        # Padding is no input that the layer has to be right for.
        if self.mask is not None and rows.shape[:-1] == self.mask.shape:
            rows = rows[self.mask]
        rows = rows.reshape(-1, rows.shape[-1])
        places = torch.linspace(0, max(len(rows) - 1, 0), min(self.quota, len(rows))).long()
        self._last = (given, rows[places.to(rows.device)].cpu())
        return self._last[1]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def collect_inputs(model: nn.Module, batches: Sequence[Any], tokens: int = TOKENS) -> dict[str, Tensor]:
    """Return what every `nn.Linear` of a model sees, by the name of its weight, [at most tokens, columns].

    Args:
        model: the fine-tuned model; left as it was.
        batches: of token ids [rows, T], or of mappings with `input_ids` and `attention_mask`, whose zeros are left out.
        tokens: most positions kept per layer, evenly spaced over the batches.

    Raises:
        ValueError: no batches.
    """
    if not batches:
        raise ValueError("collect_inputs: batches must hold at least one batch, not none.")
    collector = _Collector(model, -(-tokens // len(batches)))
    device = next(model.parameters()).device
    try:
        with _evaluating(model):
            for batch in batches:
                names = {"input_ids": batch} if isinstance(batch, Tensor) else dict(batch)
                names = {name: value.to(device) for name, value in names.items()}
                mask = names.get("attention_mask")
                collector.mask = None if mask is None else mask.bool()
                model(**names)
    finally:
        collector.close()
    return {name: torch.cat(rows)[:tokens] for name, rows in collector.kept.items() if sum(map(len, rows))}


def prompt_batches(tokenizer: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Return prompts as padded batches.

    Raises:
        ValueError: no prompts, or prompts that are no texts.
    """
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) and prompt for prompt in prompts):
        raise ValueError(f"prompts must be a list of texts, none of them empty, not {prompts!r}"[:200] + ".")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    options = {"padding": True, "truncation": True, "max_length": MOST_PROMPT_TOKENS, "return_tensors": "pt"}
    groups = [list(prompts[start : start + BATCH]) for start in range(0, len(prompts), BATCH)]
    encoded = [tokenizer(group, **options) for group in groups]
    return [{name: item[name] for name in ("input_ids", "attention_mask")} for item in encoded]


def prompt_inputs(finetuned: Checkpoint, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Return the inputs of a checkpoint's linear layers on prompts; the model is loaded, and let go, for it.

    Raises:
        ValueError: a model in memory, which has no tokenizer.
    """
    if isinstance(finetuned, nn.Module):
        raise ValueError(
            "prompts need a tokenizer, and so a checkpoint folder; for a model give inputs=collect_inputs()."
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = os.fspath(finetuned)
    batches = prompt_batches(AutoTokenizer.from_pretrained(name), prompts)
    return collect_inputs(AutoModelForCausalLM.from_pretrained(name), batches)

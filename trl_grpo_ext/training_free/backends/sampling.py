"""Sampling whose random numbers belong to the request and not to the batch. Torch and transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from trl_grpo_ext.training_free.backends.seeds import sampling_seed
from trl_grpo_ext.training_free.protocol import ChatRequest


def uniforms(request: ChatRequest) -> torch.Tensor:
    """Return (max_tokens,): the random number of each token. Drawn on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(sampling_seed(request))
    return torch.rand(request.max_tokens, generator=generator, dtype=torch.float64)


def inverse_cdf(logits: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return the tokens at the quantiles `uniform` of softmax(logits / temperature).

    Args:
        logits: (B, V).
        temperature: (B,), 0 for the most probable token.
        uniform: (B,), in [0, 1).

    Returns:
        (B,) token ids.
    """
    # MPS has no float64.
    wide = logits.float() if logits.device.type == "mps" else logits.double()
    temperature, uniform = temperature.to(wide), uniform.to(wide)
    cumulative = (wide / temperature.clamp(min=1e-6)[:, None]).softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    # The first token whose cumulative share exceeds the number; rounding must not lead past the last possible one.
    drawn = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
    last = (cumulative < total).sum(-1, keepdim=True)
    return torch.where(temperature > 0, torch.minimum(drawn, last)[:, 0], wide.argmax(-1))


class RequestSampler(LogitsProcessor):
    """Leaves one token of each row possible: the one its request draws. To be used with greedy decoding.

    Args:
        requests: one per row.
        prompt_tokens: length of the padded prompts.
        device: of the logits.
    """

    def __init__(self, requests: Sequence[ChatRequest], prompt_tokens: int, device: Any) -> None:
        self._prompt_tokens = prompt_tokens
        self._temperature = torch.tensor([request.temperature for request in requests]).to(device)
        # Beyond its own limit a row is finished, and what it draws is thrown away.
        rows = torch.nn.utils.rnn.pad_sequence([uniforms(request) for request in requests], batch_first=True)
        self._uniforms = rows.float().to(device) if torch.device(device).type == "mps" else rows.to(device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return (B, V): 0 for the token that is drawn, and minus infinity for all others."""
        tokens = inverse_cdf(scores, self._temperature, self._uniforms[:, input_ids.shape[1] - self._prompt_tokens])
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


class RowLimits(StoppingCriteria):
    """Ends each row at its own limit of tokens.

    Args:
        limits: (B,) tokens of each completion.
        prompt_tokens: length of the padded prompts.
    """

    def __init__(self, limits: torch.Tensor, prompt_tokens: int) -> None:
        self._limits, self._prompt_tokens = limits, prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return (B,): whether a row is done."""
        return input_ids.shape[1] - self._prompt_tokens >= self._limits

"""Self-certainty (arXiv 2505.19590): how far the token distributions of a completion are from uniform."""

import torch
from torch import Tensor

__all__ = ["self_certainty", "token_self_certainty"]


@torch.no_grad()
def token_self_certainty(logits: Tensor, chunk_size: int = 1024) -> Tensor:
    r"""KL divergence of the uniform distribution U to the token distribution p, in nats.

        KL(U || p) = -log V - 1/V sum_v log p_v = logsumexp(logits) - mean(logits) - log V

    0 for uniform logits. A token of probability 0 (logit -inf, as in a padded vocabulary) makes it infinite: cut such
    columns off first.

    Args:
        logits: (..., V), any floating type, already divided by the sampling temperature.
        chunk_size: Positions computed in float32 at a time; bounds the memory at `chunk_size * V * 4` bytes.

    Returns:
        (...), float32 (float64 for float64 logits), without gradient.

    Raises:
        ValueError: for a chunk size below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size!r}.")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    flat = logits.reshape(-1, logits.shape[-1])
    pieces = [_certainty(piece.to(dtype)) for piece in flat.split(chunk_size)]
    joined = torch.cat(pieces) if pieces else flat.new_empty(0, dtype=dtype)
    return joined.view(logits.shape[:-1])


def self_certainty(token_values: Tensor, mask: Tensor) -> Tensor:
    r"""Mean over the tokens of each completion, the paper's reward; 0 for a completion without tokens.

    Args:
        token_values: (B, T) of `token_self_certainty`.
        mask: (B, T): which tokens count.

    Returns:
        (B,).
    """
    mask = mask.bool()
    return torch.where(mask, token_values, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def _certainty(logits: Tensor) -> Tensor:
    size = torch.tensor(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return logits.logsumexp(-1) - logits.mean(-1) - size.log()

"""Log importance weights: of each token, of the whole sequence, or in between."""

import torch
from torch import Tensor

from trl_grpo_ext.losses.config import Level

# exp of it is 5e8. Beyond it a ratio says no more than "far away", and its exponential would overflow in the gradient.
MAX_LOG_RATIO = 20.0


def bounded_log_ratio(logps: Tensor, anchor_logps: Tensor) -> Tensor:
    """`logp - anchor_logp`, clamped to [-20, 20]; (B, T)."""
    return (logps - anchor_logps).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def masked_mean_of_rows(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked tokens of each row, 0 for a row without any; (B, T) -> (B, 1)."""
    weights = mask.to(values.dtype)
    return (values * weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True).clamp(min=1.0)


def log_importance_weights(log_ratio: Tensor, mask: Tensor, level: Level) -> Tensor:
    r"""Log of the weight that multiplies the advantage.

    With `l_t = logp_t - anchor_logp_t` and `s = mean_t l_t` over the tokens of a completion:

        token            w_t = exp(l_t)                                   PPO, GRPO
        sequence         w   = exp(s)                                     GSPO (arXiv 2507.18071, eq. 7)
        sequence_token   w_t = exp(sg[s] + l_t - sg[l_t])                 GSPO-token (same paper, eq. 14)
        geometric        as sequence; the clip works on each l_t before the mean, see `clipping.geometric_surrogate`

    `sg` stops the gradient: sequence_token has the value of the sequence weight and the gradient of each token, so
    that tokens of one sequence may have different advantages.

    Args:
        log_ratio: (B, T).
        mask: (B, T).
        level: One of the above.

    Returns:
        (B, T) for token and sequence_token, (B, 1) for the others.
    """
    if level == "token":
        return log_ratio
    mean = masked_mean_of_rows(log_ratio, mask)
    if level == "sequence_token":
        return mean.detach() + log_ratio - log_ratio.detach()
    return mean


def effective_sample_size(weights: Tensor) -> Tensor:
    r"""Kish's effective sample size as a share of the samples: `(sum w)^2 / (n sum w^2)`, in (0, 1]; 1 for no samples.

    Args:
        weights: (n,) importance weights, at least 0.

    Returns:
        A scalar.
    """
    if weights.numel() == 0:
        return torch.ones((), dtype=weights.dtype, device=weights.device)
    return weights.sum().square() / (weights.numel() * weights.square().sum()).clamp(
        min=torch.finfo(weights.dtype).tiny
    )

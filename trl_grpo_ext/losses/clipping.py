"""Clipped surrogates: what is maximised for each token, or for each sequence."""

import torch
from torch import Tensor

from trl_grpo_ext.losses.config import LossConfig
from trl_grpo_ext.losses.ratios import masked_mean_of_rows


def surrogate(log_weights: Tensor, advantages: Tensor, config: LossConfig) -> Tensor:
    r"""The surrogate objective for weights `w = exp(log_weights)` and advantages `A`.

        hard, asymmetric, dual   min(w A, clip(w, 1 - epsilon, 1 + epsilon_high) A)         PPO (arXiv 1707.06347)
          with delta             w is replaced by min(w, delta) in the first term: for A < 0 the surrogate is at least
                                 delta A (dual-clip, arXiv 1912.09729; TRL's `delta`, INTELLECT-2, arXiv 2505.07291)
        soft                     (4 / tau) sigmoid(tau (w - 1)) A, tau by the sign of A     SAPO (arXiv 2511.20347)
        none, kl_cov             w A
        clip_cov                 as hard; `covariance` then detaches some tokens

    Args:
        log_weights: (B, T) or (B, 1).
        advantages: (B, 1) or (B, T).
        config: Kind and ranges.

    Returns:
        The two shapes broadcast.
    """
    weights = torch.exp(log_weights)
    if config.clip_kind in ("none", "kl_cov"):
        return weights * advantages
    if config.clip_kind == "soft":
        return soft_gate(weights, advantages, config) * advantages
    clipped = weights.clamp(1 - config.epsilon, 1 + config.epsilon_upper)
    if config.delta is not None:
        weights = weights.clamp(max=config.delta)
    return torch.min(weights * advantages, clipped * advantages)


def soft_gate(weights: Tensor, advantages: Tensor, config: LossConfig) -> Tensor:
    """SAPO's `(4 / tau) sigmoid(tau (w - 1))`: slope 1 at w = 1, flat far away from it."""
    positive = weights.new_tensor(config.soft_temperature_positive)
    negative = weights.new_tensor(config.soft_temperature_negative)
    temperature = torch.where(advantages > 0, positive, negative)
    return torch.sigmoid(temperature * (weights - 1)) * 4 / temperature


def geometric_surrogate(log_ratio: Tensor, advantages: Tensor, mask: Tensor, config: LossConfig) -> Tensor:
    r"""GMPO's surrogate (arXiv 2507.20673): the geometric mean of ratios, each clipped in log space, times A.

        l'_t = min(l_t, clip(l_t, -epsilon, epsilon_high))   where A > 0, max(...) elsewhere
        exp(mean_t l'_t) A

    Args:
        log_ratio: (B, T).
        advantages: (B, 1).
        mask: (B, T): tokens that the mean is taken over.
        config: `clip_kind` none leaves out the clip.

    Returns:
        (B, 1).
    """
    if config.clip_kind != "none":
        clamped = log_ratio.clamp(-config.epsilon, config.epsilon_upper)
        lower, upper = torch.minimum(log_ratio, clamped), torch.maximum(log_ratio, clamped)
        log_ratio = torch.where(advantages > 0, lower, upper)
    return torch.exp(masked_mean_of_rows(log_ratio, mask)) * advantages


def clipped_tokens(log_weights: Tensor, advantages: Tensor, config: LossConfig) -> tuple[Tensor, Tensor] | None:
    """Where the clip is active: below the range with A < 0, above it with A > 0; None for kinds without a range.

    At level `geometric` pass the log ratios of the tokens.
    """
    if config.clip_kind in ("none", "soft", "kl_cov"):
        return None
    low, high = 1 - config.epsilon, 1 + config.epsilon_upper
    values = torch.exp(log_weights)
    if config.importance_sampling_level == "geometric":
        values, low, high = log_weights, -config.epsilon, config.epsilon_upper
    return (values < low) & (advantages < 0), (values > high) & (advantages > 0)

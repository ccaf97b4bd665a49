"""Clip-Cov and KL-Cov (arXiv 2505.22617): hold back the few tokens that would make the entropy collapse."""

import torch
from torch import Tensor

from trl_grpo_ext.losses.config import LossConfig


def token_covariance(logps: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    r"""Each token's share of the covariance of log-probability and advantage (paper, eq. 10).

        cov_t = (logp_t - mean(logp)) (A_t - mean(A)),    means over the masked tokens of the micro-batch

    Args:
        logps: (B, T).
        advantages: (B, T).
        mask: (B, T), bool.

    Returns:
        (B, T), without gradient; 0 outside the mask.
    """
    logps, advantages = logps.detach(), advantages.detach()
    count = mask.sum().clamp(min=1)
    mean_logps = torch.where(mask, logps, 0.0).sum() / count
    mean_advantages = torch.where(mask, advantages, 0.0).sum() / count
    return torch.where(mask, (logps - mean_logps) * (advantages - mean_advantages), 0.0)


def chosen_tokens(
    logps: Tensor, advantages: Tensor, mask: Tensor, clipped: Tensor, config: LossConfig, step: int
) -> Tensor:
    """The tokens that Clip-Cov detaches or KL-Cov penalises.

    `max(1, floor(cov_fraction n))` of the n masked tokens: for KL-Cov those with the highest covariance, for Clip-Cov
    a random choice among those with a covariance in (`cov_low`, `cov_high`) that the clip leaves alone, fewer where
    there are fewer.

    Args:
        logps: (B, T).
        advantages: (B, T).
        mask: (B, T), bool.
        clipped: (B, T), bool: tokens that the clip holds back already.
        config: The fractions and bounds.
        step: Optimizer step; with `cov_seed` it seeds Clip-Cov's choice.

    Returns:
        (B, T), bool.
    """
    covariance = token_covariance(logps, advantages, mask)
    wanted = max(1, int(config.cov_fraction * int(mask.sum())))
    if config.clip_kind == "kl_cov":
        candidates = mask.flatten().nonzero().squeeze(1)
        order = covariance.flatten()[candidates].argsort(descending=True, stable=True)
    else:
        inside = mask & ~clipped & (covariance > config.cov_low) & (covariance < config.cov_high)
        candidates = inside.flatten().nonzero().squeeze(1)
        order = _permutation(len(candidates), config.cov_seed, step).to(candidates.device)
    chosen = torch.zeros_like(mask).flatten()
    chosen[candidates[order[:wanted]]] = True
    return chosen.view_as(mask)


def apply_covariance(objective: Tensor, log_ratio: Tensor, chosen: Tensor, config: LossConfig) -> Tensor:
    """The surrogate with the chosen tokens detached (Clip-Cov), or less `cov_kl_coef |log ratio|` there (KL-Cov)."""
    if config.clip_kind == "clip_cov":
        return torch.where(chosen, 0.0, objective)
    return objective - torch.where(chosen, config.cov_kl_coef * log_ratio.abs(), 0.0)


def _permutation(length: int, seed: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    return torch.randperm(length, generator=generator)

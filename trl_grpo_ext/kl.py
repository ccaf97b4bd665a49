"""KL divergence to the reference policy: estimators, the penalty on rewards, and an adaptive coefficient."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["AdaptiveKLController", "KLEstimator", "kl_estimate", "penalize_rewards"]

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logps: Tensor, ref_logps: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    r"""Per-token estimates of `KL(policy || reference)` at tokens that the policy sampled.

    With `d = logp - ref_logp` (Schulman, "Approximating KL Divergence", 2020):

        k1 = d                      unbiased, high variance, may be negative
        k2 = d^2 / 2                biased, low variance, >= 0
        k3 = exp(-d) - 1 + d        unbiased, low variance, >= 0; GRPO (arXiv 2402.03300) and TRL

    Only the values of k1 and k3 are unbiased. As a term of the loss on fresh samples, it is k2 whose gradient is
    that of the KL divergence; k1's gradient is 0 on average, so k1 belongs in the reward.

    Args:
        logps: (B, T), in nats.
        ref_logps: (B, T), in nats.
        estimator: `k1`, `k2` or `k3`.

    Returns:
        (B, T).

    Raises:
        ValueError: for another estimator.
    """
    difference = logps - ref_logps
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return torch.exp(-difference) - 1 + difference
    raise ValueError(f"kl_estimator must be one of k1, k2, k3, not {estimator!r}.")


def penalize_rewards(
    rewards: Tensor,
    logps: Tensor,
    ref_logps: Tensor,
    mask: Tensor,
    beta: float,
    estimator: KLEstimator = "k1",
) -> Tensor:
    r"""Rewards with the KL penalty of their completion subtracted: `r_i - beta * sum_t kl_{i,t}`.

    As RLOO (arXiv 2402.14740) and TRL's RLOOTrainer, which use k1. A skipped row stays NaN.

    Args:
        rewards: (B,).
        logps: (B, T) under the policy that sampled.
        ref_logps: (B, T).
        mask: (B, T): which tokens count.
        beta: Coefficient of the penalty.
        estimator: `k1`, `k2` or `k3`.

    Returns:
        (B,), without gradient.
    """
    kl = kl_estimate(logps.detach(), ref_logps.detach(), estimator)
    return rewards - beta * torch.where(mask.bool(), kl, 0.0).sum(-1).to(rewards.dtype)


class AdaptiveKLController:
    r"""Moves the KL coefficient so that the KL divergence comes to a target (Ziegler et al., arXiv 1909.08593, 2.2).

        e = clip((KL - target) / target, -0.2, 0.2),    beta <- beta * (1 + gain * e)

    Args:
        beta: Starting coefficient, above 0.
        target: Wanted KL divergence in nats, above 0, in the unit that `update` is given.
        gain: The paper's K_beta.

    Raises:
        ValueError: for values that are not above 0.
    """

    def __init__(self, beta: float, target: float, gain: float = 0.1) -> None:
        for name, value in (("beta", beta), ("target", target), ("gain", gain)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"{name} of an adaptive KL coefficient must be a finite number above 0, not {value!r}."
                )
        self.beta = beta
        self.target = target
        self.gain = gain

    def update(self, kl: float) -> float:
        """Take one measured KL divergence and return the new coefficient; a value that is not finite is ignored."""
        if math.isfinite(kl):
            error = min(max((kl - self.target) / self.target, -0.2), 0.2)
            self.beta *= 1 + self.gain * error
        return self.beta

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on."""
        return {"beta": self.beta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.beta = float(state["beta"])

"""Weights and deltas that are made, not trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normal(shape: tuple[int, ...], seed: int, size: float) -> Tensor:
    """Return Gaussian noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


def rl_like(density: float, numel: int) -> tuple[Tensor, Tensor]:
    """Return bf16 weights, and what one small step of uniform size in fp32 makes of them at this density."""
    base = normal((numel,), 0, 0.02).bfloat16()
    steps = torch.empty(numel).uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    size = step_size(base, steps, density)
    return base, (base.float() + steps * size).bfloat16()


def step_size(base: Tensor, steps: Tensor, density: float) -> float:
    """Return what steps are multiplied by to change this share of bf16 weights."""
    low, high = 1e-8, 1e-2
    for _ in range(30):
        size = math.sqrt(low * high)
        changed = float(((base.float() + steps * size).bfloat16() != base).float().mean())
        low, high = (size, high) if changed < density else (low, size)
    return size

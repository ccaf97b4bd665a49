r"""Scales of sign codes.

A row d of a delta is coded as sum_k a_k s_k with signs s_k. The mean m = mean|d| is the scale of least squared error in
the weights, and explains the share kappa = sum_g n_g m_g^2 / sum d^2 of the energy (2/pi for a Gaussian). Least squares
on the layer's inputs X minimises |X (d - S a)|^2 instead: (S' H S) a = S' H d with H = X' X.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Relative to the mean of the Gram matrix' diagonal: keeps singular systems solvable, and changes no other visibly.
RIDGE = 1e-6


def group_count(columns: int, group: int) -> int:
    """Return the groups of a row; the last may be shorter."""
    return -(-columns // group)


def grouped(values: Tensor, group: int) -> Tensor:
    """Return values [..., columns] as [..., groups, group], with zeros in the last group's gap."""
    columns = values.shape[-1]
    gap = group_count(columns, group) * group - columns
    if gap:
        values = torch.nn.functional.pad(values, (0, gap))
    return values.unflatten(-1, (-1, group))


def group_sizes(columns: int, group: int, device: torch.device | None = None) -> Tensor:
    """Return how many weights each group of a row has, float32 [groups]."""
    sizes = torch.full((group_count(columns, group),), float(group), device=device)
    sizes[-1] = columns - group * (len(sizes) - 1)
    return sizes


def mean_scales(delta: Tensor, group: int) -> Tensor:
    """Return mean|delta| of each group, float32 [rows, groups]; delta [rows, columns], float32."""
    return mean_magnitudes(delta.abs(), group)


def mean_magnitudes(magnitudes: Tensor, group: int) -> Tensor:
    """Return the mean of each group, float32 [rows, groups]; magnitudes [rows, columns], float32."""
    columns = magnitudes.shape[-1]
    if group >= columns:
        return magnitudes.sum(-1, keepdim=True).div_(columns)
    norms = grouped(magnitudes, group).sum(-1)
    return norms.div_(group_sizes(columns, group, magnitudes.device))


def explained(scales: Tensor, columns: int, group: int) -> float:
    """Return the energy that signs times these mean scales [rows, groups] take out of a delta."""
    return float((scales.double().square() * group_sizes(columns, group).to(scales.device)).sum())


def kappa(delta: Tensor, group: int | None = None) -> float:
    r"""Return the share of a delta's energy that a sign code can explain; 1 for a delta of zeros.

    kappa = sum_g n_g mean|delta_g|^2 / sum delta^2.

    Args:
        delta: [rows, columns], float32.
        group: weights per scale; None: a scale per row.
    """
    energy = float(delta.double().square().sum())
    size = min(group or delta.shape[1], delta.shape[1])
    return explained(mean_scales(delta, size), delta.shape[1], size) / energy if energy else 1.0


def normal_equations(inputs: Tensor, delta: Tensor, signs: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return the Gram matrices [rows, K, K] and right-hand sides [rows, K] of the least squares, K = masks * groups.

    Args:
        inputs: the layer's inputs, [tokens, columns], float32.
        delta: [rows, columns], float32.
        signs: [masks, rows, columns], float32.
        group: weights per scale.
    """
    target = delta @ inputs.T
    by_group = grouped(inputs, group).permute(1, 2, 0)  # groups, group, tokens
    coded = grouped(signs, group).permute(1, 0, 2, 3)  # rows, masks, groups, group
    features = torch.einsum("rkgc,gct->rkgt", coded, by_group).flatten(1, 2)
    return features @ features.transpose(1, 2), (features @ target[:, :, None]).squeeze(-1)


def solve_scales(gram: Tensor, right: Tensor, fallback: Tensor) -> Tensor:
    """Return the scales a of gram a = right, [..., K]; `fallback` where the inputs say nothing (a zero matrix)."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    size = diagonal.mean(-1, keepdim=True)
    # Ridge regression towards the mean scale: a direction that no input has keeps it.
    ridge = size * RIDGE + torch.finfo(gram.dtype).tiny
    system = gram + torch.diag_embed(ridge.expand_as(diagonal))
    found = torch.linalg.solve(system, right + ridge * fallback)
    return torch.where((size > 0) & torch.isfinite(found), found, fallback)

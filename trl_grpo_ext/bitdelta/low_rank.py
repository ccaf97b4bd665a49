"""Low-rank codes of deltas: randomized SVD (Halko et al., arXiv 0909.4061) with a generator of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from trl_grpo_ext.bitdelta.signs import SignCode, delta_tiles

OVERSAMPLE = 16
PROBE_ROWS = 2
SEED = 0


def _delta(base: Tensor, tuned: Tensor, code: SignCode | None) -> Tensor:
    """Return the delta, or what a sign code has left of it, float32 [rows, columns]."""
    whole = torch.empty(tuned.shape)
    for start, tile in delta_tiles(base, tuned):
        whole[start : start + len(tile)] = tile if code is None else tile - code.tile(start, len(tile))
    return whole


def may_be_low_rank(base: Tensor, tuned: Tensor, max_rank: int, energy: float) -> bool:
    """Return whether a sample of rows lets hope that `max_rank` explains this share of the energy.

    The sample has 2 * max_rank rows, spread evenly: cheap beside the SVD of a matrix of full rank.
    """
    count = min(PROBE_ROWS * max_rank, tuned.shape[0])
    chosen = torch.linspace(0, tuned.shape[0] - 1, count).long()
    rows = tuned[chosen].float() - base[chosen].float()
    found = torch.linalg.eigvalsh((rows @ rows.T).double()).flip(0).clamp_min(0)
    total = float(found.sum())
    return total > 0 and float(found[:max_rank].sum()) >= energy * total


def low_rank_factors(
    base: Tensor, tuned: Tensor, rank: int, energy: float = 1.0, code: SignCode | None = None
) -> tuple[Tensor, Tensor, float]:
    """Return A [rows, r], B [r, columns] with A B near the delta (or the rest that `code` leaves), and the share.

    Args:
        rank: largest rank r.
        energy: r is the least rank that explains this share; `rank` where none does.

    Returns:
        The factors in bfloat16 and the share of the energy that their product explains.
    """
    delta = _delta(base, tuned, code)
    total = float(delta.double().square().sum())
    left, values, right = _svd(delta, min(rank, *delta.shape))
    shares = values.double().square().cumsum(0) / max(total, 1e-300)
    enough = int((shares < energy).sum()) + 1
    kept = min(enough, len(values))
    root = values[:kept].sqrt()
    factors = (left[:, :kept] * root).to(torch.bfloat16), (root[:, None] * right[:kept]).to(torch.bfloat16)
    return *factors, min(float(shares[kept - 1]), 1.0)


def _svd(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    width = min(rank + OVERSAMPLE, *delta.shape)
    generator = torch.Generator().manual_seed(SEED)
    basis = torch.linalg.qr(delta @ torch.randn(delta.shape[1], width, generator=generator))[0]
    for _ in range(2):
        basis = torch.linalg.qr(delta @ torch.linalg.qr(delta.T @ basis)[0])[0]
    left, values, right = torch.linalg.svd(basis.T @ delta, full_matrices=False)
    return (basis @ left)[:, :rank], values[:rank], right[:rank]

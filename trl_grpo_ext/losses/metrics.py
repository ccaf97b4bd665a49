"""Numbers that say what the loss did: clip fractions, ratios, KL, entropy."""

import torch
from torch import Tensor

from trl_grpo_ext.losses.ratios import effective_sample_size


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked tokens, or over the rows for a (B, 1) tensor; NaN where there is nothing."""
    if values.shape[1] == 1 and mask.shape[1] != 1:
        mask = mask.any(-1, keepdim=True)
    return torch.where(mask, values.detach().float(), 0.0).sum() / mask.sum()


def clip_metrics(clipped: tuple[Tensor, Tensor] | None, mask: Tensor) -> dict[str, Tensor | float]:
    """Share of the tokens (of the sequences, at sequence level) that the clip holds back, under TRL's names."""
    if clipped is None:
        return {}
    low, high = clipped
    return {
        "clip_ratio/low_mean": masked_mean(low, mask),
        "clip_ratio/high_mean": masked_mean(high, mask),
        "clip_ratio/region_mean": masked_mean(low | high, mask),
    }


def ratio_metrics(ratio: Tensor, mask: Tensor) -> dict[str, Tensor | float]:
    """Quantiles of the probability ratios and their effective sample size (as a share, 1 is on-policy).

    NaN without any token: ranks must have the same names, or they wait for one another for ever.
    """
    if ratio.shape[1] == 1 and mask.shape[1] != 1:
        mask = mask.any(-1, keepdim=True)
    values = ratio[mask.expand_as(ratio)].float()
    if values.numel() == 0:
        values = values.new_full((1,), torch.nan)
    ordered = values.sort().values
    positions = {"min": 0.0, "q05": 0.05, "median": 0.5, "q95": 0.95, "max": 1.0}
    found: dict[str, Tensor | float] = {
        f"ratio/{name}": ordered[round(share * (ordered.numel() - 1))] for name, share in positions.items()
    }
    return found | {"ratio/effective_sample_size": effective_sample_size(values)}

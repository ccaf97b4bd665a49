"""Group-relative advantages: ranks, baseline, scale, clipping. Pure functions of a reward vector."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["AdvantageConfig", "constant_groups", "group_advantages", "rank_rewards"]

Baseline = Literal["mean", "leave_one_out", "median"]
Scale = Literal["std", "mad", "none", "batch"]


@dataclass(frozen=True)
class AdvantageConfig:
    """Choices of `group_advantages`; the defaults are TRL's.

    Args:
        num_generations: Completions per prompt, G; consecutive rows are one group.
        baseline: `mean` (GRPO, arXiv 2402.03300), `leave_one_out` (RLOO, arXiv 2402.14740: the mean of the others) or
            `median` (MC-GRPO, arXiv 2601.22582; with an odd G one row, the pivot, has advantage 0).
        scale: Divisor of the centred reward: `std` of the group, `mad` of the group (median absolute deviation from
            the group's median), `batch` (std over all rows given), or `none` (Dr. GRPO, arXiv 2503.20783).
        ddof: Delta degrees of freedom of both std: 1 divides by n - 1 (TRL and torch), 0 by n (population).
        eps: Added to the divisor (TRL: 1e-4).
        floor: The divisor before `eps` is at least this; keeps near-constant groups from exploding.
        clip: Advantages are clipped to [-clip, clip]; None is no clipping.
        ranks: Replace rewards by their ranks in the group, ties averaged, scaled to [0, 1], before all else.

    Raises:
        ValueError: for a value out of range, and for choices that cannot combine.
    """

    num_generations: int
    baseline: Baseline = "mean"
    scale: Scale = "std"
    ddof: int = 1
    eps: float = 1e-4
    floor: float = 0.0
    clip: float | None = None
    ranks: bool = False

    def __post_init__(self) -> None:
        for name, value, options in (
            ("baseline", self.baseline, get_args(Baseline)),
            ("scale", self.scale, get_args(Scale)),
            ("ddof", self.ddof, (0, 1)),
        ):
            if value not in options:
                raise ValueError(f"advantage {name} must be one of {', '.join(map(str, options))}, not {value!r}.")
        if self.num_generations < 2:
            raise ValueError(
                f"num_generations must be at least 2 to compare completions with one another, not "
                f"{self.num_generations!r}."
            )
        if not self.eps > 0:
            raise ValueError(f"advantage eps must be above 0, or a constant group divides by 0, not {self.eps!r}.")
        if not self.floor >= 0:
            raise ValueError(f"advantage floor must be at least 0, not {self.floor!r}.")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"advantage clip must be above 0, not {self.clip!r}; None is no clipping.")
        if self.floor > 0 and self.scale == "none":
            raise ValueError("advantage floor bounds the divisor and does nothing with advantage scale 'none'.")


def group_advantages(rewards: Tensor, config: AdvantageConfig, mask: Tensor | None = None) -> Tensor:
    r"""Advantages of completions relative to their group.

        A_i = clip((r_i - b) / (max(s, floor) + eps), -clip, clip)

    with the baseline b and scale s of `AdvantageConfig`, over the rows of the group that count. A skipped row (reward
    NaN, or mask False) has advantage 0 and no share in b and s. A group with one row left, or with equal rewards, has
    advantages of exactly 0. Adding a constant to the rewards of a group changes nothing.

    `leave_one_out` is the mean of the others, so `r_i - b = n / (n - 1) (r_i - mean)`; s is that of the whole group.
    `mad` of a group whose majority has one reward is 0; then s is its mean absolute deviation from the median.

    Args:
        rewards: (N,), groups of G consecutive rows; NaN is a skipped row.
        config: The choices.
        mask: (N,), bool: rows that count; None is all.

    Returns:
        (N,), at least float32.

    Raises:
        ValueError: for a shape that does not divide into groups, and for infinite rewards.
    """
    grouped = _grouped(rewards, config.num_generations, mask)
    if torch.isinf(grouped).any():
        raise ValueError("rewards must be finite, or NaN for a skipped row; one of them is infinite.")
    values = rank_rewards(grouped) if config.ranks else grouped
    centred = values - _baseline(values, config.baseline)
    if config.scale != "none":
        centred = centred / (_scale(values, config).clamp(min=config.floor) + config.eps)
    dead = _constant(grouped).unsqueeze(1) | torch.isnan(grouped)
    advantages = torch.where(dead, 0.0, centred).flatten()
    return advantages if config.clip is None else advantages.clamp(-config.clip, config.clip)


def constant_groups(rewards: Tensor, num_generations: int, mask: Tensor | None = None) -> Tensor:
    """Groups that carry no signal: all rewards that count are equal, or fewer than two count.

    Args:
        rewards: (N,), NaN is a skipped row.
        num_generations: G.
        mask: (N,), bool: rows that count.

    Returns:
        (N / G,), bool.
    """
    return _constant(_grouped(rewards, num_generations, mask))


def rank_rewards(grouped: Tensor) -> Tensor:
    """Ranks inside each row of (groups, G), lowest 0 and highest 1, ties averaged; NaN stays NaN and has no rank."""
    below = (grouped.unsqueeze(1) < grouped.unsqueeze(2)).sum(2)
    equal = (grouped.unsqueeze(1) == grouped.unsqueeze(2)).sum(2)
    count = (~torch.isnan(grouped)).sum(1, keepdim=True)
    ranks = (2 * below + equal - 1).to(grouped.dtype) / (2 * (count - 1).clamp(min=1))
    return torch.where(torch.isnan(grouped), torch.nan, ranks)


def _grouped(rewards: Tensor, num_generations: int, mask: Tensor | None) -> Tensor:
    """(N,) -> (groups, G), at least float32, NaN where the row does not count."""
    if rewards.dim() != 1 or len(rewards) % num_generations:
        raise ValueError(
            f"rewards must have the shape (N,) with N a multiple of num_generations ({num_generations}), not "
            f"{tuple(rewards.shape)}."
        )
    values = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    if mask is not None:
        values = torch.where(mask.bool(), values, torch.nan)
    return values.view(-1, num_generations)


def _constant(grouped: Tensor) -> Tensor:
    valid = ~torch.isnan(grouped)
    highest = torch.where(valid, grouped, -torch.inf).amax(1)
    lowest = torch.where(valid, grouped, torch.inf).amin(1)
    return (highest <= lowest) | (valid.sum(1) < 2)


def _baseline(grouped: Tensor, baseline: Baseline) -> Tensor:
    if baseline == "mean":
        return grouped.nanmean(1, keepdim=True)
    if baseline == "median":
        return _median(grouped)
    others = (~torch.isnan(grouped)).sum(1, keepdim=True) - 1
    return (grouped.nansum(1, keepdim=True) - grouped) / others


def _scale(grouped: Tensor, config: AdvantageConfig) -> Tensor:
    if config.scale == "mad":
        return _mad(grouped)
    if config.scale == "batch":
        return _std(grouped.view(1, -1), config.ddof)
    return _std(grouped, config.ddof)


def _std(grouped: Tensor, ddof: int) -> Tensor:
    count = (~torch.isnan(grouped)).sum(1, keepdim=True)
    squares = (grouped - grouped.nanmean(1, keepdim=True)).square().nansum(1, keepdim=True)
    return torch.where(count > ddof, (squares / (count - ddof).clamp(min=1)).sqrt(), 0.0)


def _mad(grouped: Tensor) -> Tensor:
    deviations = (grouped - _median(grouped)).abs()
    median = _median(deviations)
    return torch.where(median > 0, median, deviations.nanmean(1, keepdim=True))


def _median(grouped: Tensor) -> Tensor:
    """Of the values that are not NaN; the mean of the two middle ones where their count is even."""
    return grouped.nanquantile(0.5, dim=1, keepdim=True, interpolation="midpoint")

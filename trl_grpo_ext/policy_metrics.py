"""What the policy update really did: one set of names and meanings for every TRL version and every loss here.

Each is over the tokens that the loss counts, of one micro-batch, on all ranks together: `clip_ratio/low_mean`,
`clip_ratio/high_mean`, `clip_ratio/region_mean` (shares of tokens that the clip holds back), `ratio/min`, `ratio/q05`,
`ratio/median`, `ratio/q95`, `ratio/max`, `ratio/effective_sample_size`, `entropy` and, with a reference model, `kl`
(the estimator's value, without any correction). At the level of sequences, ratios and clips count once per sequence.
The ratio is that to the policy that sampled; with `clip_anchor: reference`, to the reference.
"""

from typing import Any

import torch

from trl_grpo_ext.kl import kl_estimate
from trl_grpo_ext.losses import LossConfig, LossInputs
from trl_grpo_ext.losses.clipping import clipped_tokens
from trl_grpo_ext.losses.metrics import clip_metrics, masked_mean, ratio_metrics
from trl_grpo_ext.losses.ratios import bounded_log_ratio, log_importance_weights


def policy_metrics(accelerator: Any, inputs: LossInputs, config: LossConfig, clips: bool = True) -> dict[str, float]:
    """Return the metrics of one micro-batch; every rank must call it.

    Args:
        accelerator: gathers over the ranks.
        inputs: the micro-batch of this rank.
        config: anchor, level, clip kind and ranges.
        clips: whether the loss clips the ratio at all.
    """
    mask = inputs.mask.bool()
    logps = torch.where(mask, inputs.logps.detach().float(), 0.0)
    anchor = inputs.ref_logps if config.clip_anchor == "reference" else inputs.old_logps
    anchor = logps if anchor is None else torch.where(mask, anchor.float(), 0.0)
    log_ratio = bounded_log_ratio(logps, anchor)
    log_weights = log_importance_weights(log_ratio, mask, config.importance_sampling_level)
    metrics = ratio_metrics(*_world(accelerator, torch.exp(log_weights), mask))
    metrics |= _tokens(accelerator, inputs, logps, mask, config)
    if clips:
        seen = log_ratio if config.importance_sampling_level == "geometric" else log_weights
        clipped = clipped_tokens(seen, inputs.advantages.float().reshape(len(logps), -1), config)
        metrics |= _clips(accelerator, clipped, mask)
    return {name: float(value) for name, value in metrics.items()}


def _clips(accelerator: Any, clipped: tuple[torch.Tensor, torch.Tensor] | None, mask: torch.Tensor) -> dict[str, Any]:
    if clipped is None:
        return {}
    low, _ = _world(accelerator, clipped[0].float(), mask)
    high, world_mask = _world(accelerator, clipped[1].float(), mask)
    return clip_metrics((low.bool(), high.bool()), world_mask)


def _tokens(
    accelerator: Any, inputs: LossInputs, logps: torch.Tensor, mask: torch.Tensor, config: LossConfig
) -> dict[str, Any]:
    values = {}
    if inputs.entropies is not None:
        values["entropy"] = inputs.entropies.detach().float()
    if inputs.ref_logps is not None:
        values["kl"] = kl_estimate(logps, torch.where(mask, inputs.ref_logps.float(), 0.0), config.kl_estimator)
    return {name: masked_mean(*_world(accelerator, value, mask)) for name, value in values.items()}


def _world(accelerator: Any, values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values and the mask of all ranks, (rows, T) or, for one value per sequence, (rows, 1)."""
    if values.shape[1] == 1:
        mask = mask.any(-1, keepdim=True)
    both = torch.stack([values, mask.to(values)], dim=-1)
    world = accelerator.gather(accelerator.pad_across_processes(both, dim=1).contiguous())
    return world[..., 0], world[..., 1].bool()


def set_last(metrics: dict[str, list[float]], name: str, value: float, before: int) -> None:
    """Make `value` the one entry that a metric got since it had `before` entries; a NaN takes it back.

    TRL 0.24 averages with NaN in, and divides by the number of entries.
    """
    del metrics[name][before:]
    if value == value:
        metrics[name].append(value)
    if not metrics[name]:
        del metrics[name]

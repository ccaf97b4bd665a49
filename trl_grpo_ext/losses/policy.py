"""The policy loss: anchors, level, clip, KL and aggregation put together."""

import torch
from torch import Tensor

from trl_grpo_ext.kl import kl_estimate
from trl_grpo_ext.losses.aggregation import aggregate
from trl_grpo_ext.losses.clipping import clipped_tokens, geometric_surrogate, surrogate
from trl_grpo_ext.losses.config import LossConfig
from trl_grpo_ext.losses.covariance import apply_covariance, chosen_tokens
from trl_grpo_ext.losses.inputs import LossInputs, LossOutputs
from trl_grpo_ext.losses.metrics import clip_metrics, masked_mean, ratio_metrics
from trl_grpo_ext.losses.ratios import bounded_log_ratio, log_importance_weights


def policy_loss(inputs: LossInputs, config: LossConfig) -> LossOutputs:
    r"""The clipped group-relative policy loss, to be minimised.

        l_{i,t} = -min_anchor surrogate(logp - anchor_logp, A) * importance_weight + beta * kl_{i,t} [* ratio]
        loss = aggregate(l)

    The minimum is over the anchors of `clip_anchor` (one, or two for `both`). Surrogates: `clipping.surrogate` and
    `clipping.geometric_surrogate`; estimators: `kl.kl_estimate`; averages: `aggregation.aggregate`. Where the
    settings coincide with TRL's, so does the value, and the gradient.

    Half precision is computed in float32. Log ratios are clamped to [-20, 20], beyond which there is no gradient.

    Args:
        inputs: One micro-batch.
        config: The options.

    Returns:
        The loss with gradient, and detached metrics: `clip_ratio/*`, `ratio/*`, `kl` where reference
        log-probabilities are given (without the bias correction), `entropy` where entropies are given.

    Raises:
        ValueError: where `inputs` lacks what `config` needs.
    """
    _check(inputs, config)
    mask = inputs.mask.bool()
    logps, old, reference = _clean(inputs, mask)
    advantages = inputs.advantages.to(logps.dtype).reshape(logps.shape[0], -1)

    ratios = [bounded_log_ratio(logps, anchor) for anchor in _anchors(config, old, reference)]
    objective, extra = _objective(ratios, logps, advantages, mask, inputs, config)
    if inputs.entropy_mask is not None and config.importance_sampling_level != "geometric":
        objective = objective * inputs.entropy_mask
    if inputs.importance_weights is not None:
        objective = objective * torch.where(_like(mask, inputs.importance_weights), inputs.importance_weights, 0.0)
    per_token_loss = -objective
    if config.kl_in_loss:
        per_token_loss = per_token_loss + config.beta * _kl(logps, old, reference, mask, config)

    log_weights = log_importance_weights(ratios[0].detach(), mask, config.importance_sampling_level)
    metrics = _metrics(inputs, config, mask, log_weights, ratios[0].detach(), advantages)
    if reference is not None:
        metrics["kl"] = masked_mean(kl_estimate(logps.detach(), reference, config.kl_estimator), mask)
    return LossOutputs(aggregate(per_token_loss, inputs, config.loss_type), metrics | extra, torch.exp(log_weights))


def _check(inputs: LossInputs, config: LossConfig) -> None:
    if inputs.ref_logps is None and (config.clip_anchor != "old" or config.kl_in_loss):
        why = f"clip_anchor {config.clip_anchor!r}" if config.clip_anchor != "old" else f"beta {config.beta:g}"
        raise ValueError(f"{why} needs LossInputs.ref_logps, which is None: give the reference log-probabilities.")
    if config.importance_sampling_level != "geometric":
        return
    if inputs.advantages.dim() == 2 and inputs.advantages.shape[1] > 1:
        raise ValueError(
            "importance_sampling_level 'geometric' needs one advantage per completion, shape (B,), not "
            f"{tuple(inputs.advantages.shape)}: use level 'token' or 'sequence_token' for advantages of single tokens."
        )
    if inputs.importance_weights is not None and inputs.importance_weights.shape[1] > 1:
        raise ValueError(
            "importance_sampling_level 'geometric' needs one importance weight per completion, shape (B, 1), not "
            f"{tuple(inputs.importance_weights.shape)}: use a sequence mode of the sampler correction."
        )


def _clean(inputs: LossInputs, mask: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Policy, old and reference log-probabilities, at least float32, 0 outside the mask whatever stood there."""

    def clean(values: Tensor) -> Tensor:
        return torch.where(mask, values, 0.0).to(torch.promote_types(values.dtype, torch.float32))

    logps = clean(inputs.logps)
    old = logps.detach() if inputs.old_logps is None else clean(inputs.old_logps.detach())
    return logps, old, None if inputs.ref_logps is None else clean(inputs.ref_logps.detach())


def _anchors(config: LossConfig, old: Tensor, reference: Tensor | None) -> list[Tensor]:
    chosen = {"old": [old], "reference": [reference], "both": [old, reference]}[config.clip_anchor]
    return [anchor for anchor in chosen if anchor is not None]


def _objective(
    ratios: list[Tensor], logps: Tensor, advantages: Tensor, mask: Tensor, inputs: LossInputs, config: LossConfig
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """The smallest of the anchors' surrogates, and metrics of its own."""
    level = config.importance_sampling_level
    if level == "geometric":
        counted = mask if inputs.entropy_mask is None else mask & inputs.entropy_mask.bool()
        surrogates = [geometric_surrogate(ratio, advantages, counted, config) for ratio in ratios]
    else:
        surrogates = [surrogate(log_importance_weights(r, mask, level), advantages, config) for r in ratios]
    objective = surrogates[0] if len(surrogates) == 1 else torch.min(*surrogates)
    if config.clip_kind not in ("clip_cov", "kl_cov"):
        return objective, {}
    chosen = _chosen(ratios[0], logps, advantages, mask, inputs, config)
    share = masked_mean(chosen, mask)
    return apply_covariance(objective, ratios[0], chosen, config), {"clip_ratio/covariance": share}


def _chosen(
    log_ratio: Tensor, logps: Tensor, advantages: Tensor, mask: Tensor, inputs: LossInputs, config: LossConfig
) -> Tensor:
    clipped = clipped_tokens(log_ratio.detach(), advantages, config)
    held = torch.zeros_like(mask) if clipped is None else clipped[0] | clipped[1]
    return chosen_tokens(logps, advantages.expand_as(logps), mask, held, config, inputs.step)


def _kl(logps: Tensor, old: Tensor, reference: Tensor | None, mask: Tensor, config: LossConfig) -> Tensor:
    assert reference is not None
    kl = kl_estimate(logps, reference, config.kl_estimator)
    if not config.use_bias_correction_kl:
        return kl
    log_ratio = bounded_log_ratio(logps, old)
    return kl * torch.exp(log_importance_weights(log_ratio, mask, config.importance_sampling_level))


def _metrics(
    inputs: LossInputs, config: LossConfig, mask: Tensor, log_weights: Tensor, log_ratio: Tensor, advantages: Tensor
) -> dict[str, Tensor | float]:
    tokens = log_ratio if config.importance_sampling_level == "geometric" else log_weights
    metrics = clip_metrics(clipped_tokens(tokens, advantages, config), mask)
    metrics |= ratio_metrics(torch.exp(log_weights), mask)
    if inputs.entropies is not None:
        metrics["entropy"] = masked_mean(inputs.entropies, mask)
    return metrics


def _like(mask: Tensor, weights: Tensor) -> Tensor:
    return mask if weights.shape == mask.shape else mask.any(-1, keepdim=True)

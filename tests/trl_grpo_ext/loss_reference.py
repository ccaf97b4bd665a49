"""The losses again, as plain loops over Python floats and one-element tensors: what the fast code is compared with."""

import math

import torch


def exp(value):
    return torch.exp(value)


def clip(value, low, high):
    return torch.clamp(value, low, high)


def smaller(a, b):
    return a if a <= b else b


def larger(a, b):
    return a if a >= b else b


def weight_of(level, ratios, t):
    """The log importance weight of token t of one sequence, whose log ratios are given."""
    mean = sum(ratios) / len(ratios)
    if level == "token":
        return ratios[t]
    if level == "sequence":
        return mean
    return mean.detach() + ratios[t] - ratios[t].detach()


def clipped_objective(weight, advantage, config):
    low, high = 1 - config.epsilon, 1 + config.epsilon_upper
    if config.clip_kind in ("none", "kl_cov"):
        return weight * advantage
    if config.clip_kind == "soft":
        tau = config.soft_temperature_positive if advantage > 0 else config.soft_temperature_negative
        return 4 / tau / (1 + torch.exp(-tau * (weight - 1))) * advantage
    free = weight if config.delta is None else smaller(weight, torch.full_like(weight, config.delta))
    return smaller(free * advantage, clip(weight, low, high) * advantage)


def geometric_objective(ratios, advantage, config):
    total = 0.0
    for ratio in ratios:
        held = clip(ratio, -config.epsilon, config.epsilon_upper)
        choose = smaller if advantage > 0 else larger
        total = total + (ratio if config.clip_kind == "none" else choose(ratio, held))
    return exp(total / len(ratios)) * advantage


def kl_of(logp, ref, estimator):
    d = logp - ref
    return {"k1": d, "k2": d * d / 2, "k3": torch.exp(-d) - 1 + d}[estimator]


def covariances(rows, advantages):
    """{(i, t): covariance} over all tokens; `rows[i]` are the log-probabilities of sequence i."""
    values = [value.item() for row in rows for value in row]
    weights = [a for row, a in zip(rows, advantages, strict=True) for _ in row]
    mean, mean_a = sum(values) / len(values), sum(weights) / len(weights)
    return {
        (i, t): (value.item() - mean) * (advantages[i] - mean_a)
        for i, row in enumerate(rows)
        for t, value in enumerate(row)
    }


def reference_loss(logps, old, ref, advantages, mask, config, **divisors):
    """The loss of `losses.policy_loss` for (B, T) tensors and B advantages, with its gradient to `logps`."""
    rows = [[t for t in range(mask.shape[1]) if mask[i, t]] for i in range(mask.shape[0])]
    chosen = _kl_cov_tokens(logps, advantages, rows, config)
    losses = [[] for _ in rows]
    for i, tokens in enumerate(rows):
        anchors = {"old": [old], "reference": [ref], "both": [old, ref]}[config.clip_anchor]
        ratios = [[logps[i, t] - anchor[i, t] for t in tokens] for anchor in anchors]
        for position, t in enumerate(tokens):
            found = [_objective(each, position, advantages[i], config) for each in ratios]
            loss = -(found[0] if len(found) == 1 else smaller(*found))
            if (i, position) in chosen:
                loss = loss + config.cov_kl_coef * ratios[0][position].abs()
            if config.beta and config.kl_place == "loss":
                kl = kl_of(logps[i, t], ref[i, t], config.kl_estimator)
                if config.use_bias_correction_kl:
                    to_old = [logps[i, s] - old[i, s] for s in tokens]
                    level = config.importance_sampling_level
                    kl = kl * exp(weight_of("sequence" if level == "geometric" else level, to_old, position))
                loss = loss + config.beta * kl
            losses[i].append(loss)
    return average(losses, config.loss_type, **divisors)


def _objective(ratios, position, advantage, config):
    if config.importance_sampling_level == "geometric":
        return geometric_objective(ratios, advantage, config)
    weight = exp(weight_of(config.importance_sampling_level, ratios, position))
    return clipped_objective(weight, advantage, config)


def _kl_cov_tokens(logps, advantages, rows, config):
    if config.clip_kind != "kl_cov":
        return set()
    found = covariances([[logps[i, t] for t in tokens] for i, tokens in enumerate(rows)], advantages)
    wanted = max(1, math.floor(config.cov_fraction * len(found)))
    return set(sorted(found, key=lambda key: -found[key])[:wanted])


def average(losses, loss_type, accumulation_steps=1, max_completion_length=1, num_items=1, window_tokens=1, ranks=1):
    """Token losses per sequence -> one number."""
    total = sum(sum(row) for row in losses if row)
    if loss_type == "grpo":
        return sum(sum(row) / len(row) for row in losses if row) / len(losses) / accumulation_steps
    if loss_type == "bnpo":
        return total / sum(len(row) for row in losses) / accumulation_steps
    if loss_type == "dr_grpo":
        return total / (len(losses) * max_completion_length) / accumulation_steps
    return total / num_items if loss_type == "dapo" else total * ranks / window_tokens

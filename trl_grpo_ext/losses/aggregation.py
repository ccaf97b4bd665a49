"""From token losses to one number: the five ways to average."""

import torch
from torch import Tensor

from trl_grpo_ext.losses.inputs import LossInputs

_NEEDS = {"dr_grpo": "max_completion_length", "dapo": "num_items", "token_mean": "window_tokens"}


def aggregate(per_token_loss: Tensor, inputs: LossInputs, loss_type: str) -> Tensor:
    r"""Average token losses `l_{i,t}` over a micro-batch of B completions with `n_i` masked tokens.

        grpo         1/K   1/B sum_i 1/n_i sum_t l_{i,t}              GRPO (arXiv 2402.03300), biased to short answers
        bnpo         1/K   sum_{i,t} l_{i,t} / sum_i n_i              TRL: token mean of the micro-batch
        dr_grpo      1/K   sum_{i,t} l_{i,t} / (B max_completion_length)      Dr. GRPO (arXiv 2503.20783)
        dapo               sum_{i,t} l_{i,t} / num_items              DAPO (arXiv 2503.14476), see `dapo_num_items`
        token_mean         P sum_{i,t} l_{i,t} / window_tokens        exact token mean of the optimizer step

    K is `accumulation_steps`. P is `num_processes`: data-parallel ranks average their gradients, so P times the
    rank's sum over the global count is the mean over all tokens of all ranks. `bnpo` is not: it averages averages.
    With `mask` counting in `n_i` at least 1, a fully masked row adds 0.

    Args:
        per_token_loss: (B, T), or (B, 1) for one value per sequence, which then counts once per masked token.
        inputs: Mask and divisors.
        loss_type: One of the above.

    Returns:
        A scalar.

    Raises:
        ValueError: for another loss type, or where `inputs` lacks its divisor.
    """
    needed = _NEEDS.get(loss_type)
    if needed and getattr(inputs, needed) is None:
        raise ValueError(f"loss_type {loss_type!r} divides by LossInputs.{needed}, which is None: give it.")
    mask = inputs.mask.bool()
    tokens = torch.where(mask, per_token_loss, 0.0)
    if loss_type == "grpo":
        return (tokens.sum(-1) / mask.sum(-1).clamp(min=1)).mean() / inputs.accumulation_steps
    if loss_type == "bnpo":
        return tokens.sum() / mask.sum().clamp(min=1) / inputs.accumulation_steps
    if loss_type == "dr_grpo":
        return tokens.sum() / (tokens.size(0) * inputs.max_completion_length) / inputs.accumulation_steps
    if loss_type == "dapo":
        return tokens.sum() / inputs.num_items
    if loss_type == "token_mean":
        return tokens.sum() * inputs.num_processes / inputs.window_tokens
    raise ValueError(f"loss_type must be one of grpo, bnpo, dr_grpo, dapo, token_mean, not {loss_type!r}.")


def dapo_num_items(
    num_items_in_batch: float | Tensor,
    num_processes: int,
    accumulation_steps: float = 1,
    steps_per_generation: float = 1,
) -> float | Tensor:
    r"""Completion tokens per rank in one accumulation window, the divisor of loss_type `dapo`.

        max(num_items_in_batch, 1) / num_processes * accumulation_steps / steps_per_generation

    As TRL since 1.10. TRL 0.24 has no last factor: its loss is too small by `steps_per_generation /
    accumulation_steps` where the two differ. In evaluation leave out both steps.

    Args:
        num_items_in_batch: Completion tokens of the generation batch on all ranks.
        num_processes: Ranks.
        accumulation_steps: Micro-batches in the accumulation window.
        steps_per_generation: Micro-batches in the generation batch.

    Returns:
        What the sum of the token losses is divided by.
    """
    items = num_items_in_batch.clamp(min=1.0) if isinstance(num_items_in_batch, Tensor) else max(num_items_in_batch, 1)
    return items / num_processes * accumulation_steps / steps_per_generation

"""From a micro-batch of TRL to the inputs of a loss function."""

from typing import Any

import torch

from trl_grpo_ext.losses import LossInputs, dapo_num_items


def token_mask(batch: dict[str, Any]) -> torch.Tensor:
    """Return (rows, T): the completion tokens that the loss counts; those that a tool wrote are not among them."""
    return batch["completion_mask"] * batch.get("tool_mask", 1)


def loss_inputs(
    trainer: Any, batch: dict[str, Any], logps: torch.Tensor, entropies: torch.Tensor | None
) -> LossInputs:
    """Return what `policy_loss`, or a user's `loss_fn`, is given for one micro-batch.

    Args:
        trainer: an ExtendedGRPOTrainer.
        batch: the micro-batch, as `_prepare_inputs` returns it.
        logps: (rows, T) under the policy.
        entropies: (rows, T), or None.
    """
    mask, training = token_mask(batch), trainer.model.training
    accumulation = trainer.current_gradient_accumulation_steps if training else 1
    ranks = trainer.accelerator.num_processes
    return LossInputs(
        logps=logps,
        advantages=batch["advantages"],
        mask=mask,
        old_logps=batch.get("old_per_token_logps"),
        ref_logps=batch.get("ref_per_token_logps"),
        entropies=entropies,
        entropy_mask=_entropy_mask(trainer, entropies, mask),
        importance_weights=batch.get("importance_sampling_ratio"),
        num_items=dapo_num_items(
            batch["num_items_in_batch"],
            ranks,
            accumulation,
            trainer.args.steps_per_generation if training else 1,
        ),
        window_tokens=batch.get("window_tokens"),
        num_processes=ranks,
        accumulation_steps=accumulation,
        max_completion_length=trainer.max_completion_length,
        num_generations=trainer.num_generations,
        step=trainer.state.global_step,
        progress=min(trainer.state.global_step / max(trainer.state.max_steps, 1), 1.0),
    )


def _entropy_mask(trainer: Any, entropies: torch.Tensor | None, mask: torch.Tensor) -> torch.Tensor | None:
    """TRL's `top_entropy_quantile`: the tokens of highest entropy."""
    if trainer.top_entropy_quantile >= 1.0 or entropies is None:
        return None
    return trainer.get_high_entropy_mask(entropies, mask, 1 - trainer.top_entropy_quantile)


def window_tokens(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Return the tokens of the accumulation window that a micro-batch lies in, on all ranks (loss_type `token_mean`)."""
    window = [batch]
    if trainer.model.training:
        steps = trainer.args.gradient_accumulation_steps
        position = next(i for i, one in enumerate(trainer._buffered_inputs) if one is batch)
        first = position - position % steps
        window = trainer._buffered_inputs[first : first + steps]
    tokens = torch.stack([token_mask(one).sum() for one in window]).sum().float()
    return trainer.accelerator.reduce(tokens, reduction="sum").clamp(min=1.0)

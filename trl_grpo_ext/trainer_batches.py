"""What `ExtendedGRPOTrainer` does to a micro-batch between TRL's `_prepare_inputs` and the loss."""

from typing import Any

from trl_grpo_ext.batching import regrouped, trimmed, without_zero_advantages
from trl_grpo_ext.batching.support import moves_with_its_positions


def keep_groups(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Regroup TRL's buffer when it is new, and return the micro-batch that now stands in the place of `batch`."""
    args, buffer = trainer.args, trainer._buffered_inputs
    if not (args.keep_groups or args.shared_prompt) or not trainer.model.training:
        return batch
    position = next(i for i, one in enumerate(buffer) if one is batch)
    if buffer is not trainer.regrouped_inputs:
        window = args.gradient_accumulation_steps
        by_length = args.orders_groups and trainer.loss_fn is None and len(buffer) % window == 0
        trainer._buffered_inputs = trainer.regrouped_inputs = regrouped(buffer, window, by_length)
    return trainer._buffered_inputs[position]


def smaller(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Return the micro-batch without rows that have no gradient, and without columns that are padding."""
    args = trainer.args
    if args.skip_zero_advantages and trainer.model.training:
        batch = without_zero_advantages(trainer.accelerator, batch, trainer.loss_type)
    if args.trim_padding:
        model = trainer.accelerator.unwrap_model(trainer.model)
        batch = trimmed(batch, moves_with_its_positions(model.config))
    return batch

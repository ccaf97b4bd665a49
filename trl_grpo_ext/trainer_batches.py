"""What `ExtendedGRPOTrainer` does to save work: which parts of `batching` it uses, and where."""

from dataclasses import dataclass
from typing import Any

from trl_grpo_ext import batching_checks
from trl_grpo_ext.batching import (
    BatchingPlan,
    Circumstances,
    LogProbPasses,
    SharedPrefill,
    batching_plan,
    dropout_reason,
    regrouped,
    sharded_reason,
    trimmed,
    without_zero_advantages,
)
from trl_grpo_ext.trainer_setup import has_images

_PLANNED = ("shared_prompt", "shared_prefill", "chunked_logps", "keep_groups", "trim_padding")


@dataclass(frozen=True)
class Batching:
    """The parts of `batching` that a trainer has made for its model and options."""

    plan: BatchingPlan
    passes: LogProbPasses
    prefill: SharedPrefill

    @classmethod
    def of(cls, trainer: Any, dataset: Any) -> "Batching":
        """Decide and make them; after TRL's `__init__`."""
        args, accelerator = trainer.args, trainer.accelerator
        plan = batching_plan({name: getattr(args, name) for name in _PLANNED}, _circumstances(trainer, dataset))
        forms = {"share": plan.shared_prompt, "chunk": plan.chunked_logps, "skip_entropy": args.skip_entropy}
        engine = "use_vllm" if args.use_vllm else batching_checks.pages_the_cache(args)
        return cls(
            plan=plan,
            passes=LogProbPasses(accelerator, trainer.temperature, **forms, asked=plan.asked),
            prefill=SharedPrefill(accelerator, plan.shared_prefill, "shared_prefill" in plan.asked, engine),
        )


def _circumstances(trainer: Any, dataset: Any) -> Circumstances:
    args = trainer.args
    return Circumstances(
        one_window=args.one_window and trainer.loss_fn is None,
        own_head=not batching_checks.needs_logits(args),
        own_loss_fn=trainer.loss_fn is not None,
        images=has_images(dataset),
        dropout=dropout_reason(trainer.model) is not None,
        sharded=sharded_reason(trainer.accelerator) is not None,
        paged=batching_checks.pages_the_cache(args) is not None,
    )


def keep_groups(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Regroup TRL's buffer when it is new, and return the micro-batch that now stands in the place of `batch`."""
    args, buffer = trainer.args, trainer._buffered_inputs
    if not trainer.batching.plan.keep_groups or not trainer.model.training:
        return batch
    position = next(i for i, one in enumerate(buffer) if one is batch)
    if buffer is not trainer.regrouped_inputs:
        window = args.gradient_accumulation_steps
        by_length = args.orders_groups and trainer.loss_fn is None and len(buffer) % window == 0
        trainer._buffered_inputs = trainer.regrouped_inputs = regrouped(buffer, window, by_length)
    return trainer._buffered_inputs[position]


def smaller(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Return the micro-batch without rows that have no gradient, and without columns that are padding."""
    if trainer.args.skip_zero_advantages and trainer.model.training:
        batch = without_zero_advantages(trainer.accelerator, batch, trainer.loss_type)
    if trainer.batching.plan.trim_padding:
        batch = trimmed(batch, trainer.accelerator.unwrap_model(trainer.model).config)
    return batch

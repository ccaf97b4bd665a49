"""What TRL does not tell its rewards: whether it is evaluating, and how many rows make a group.

Both are read from the trainer whose `_calculate_rewards` is among the callers. A reward that runs elsewhere, in a worker
process or called by hand, has no such caller.
"""

from typing import Any

from trl_grpo_ext._attach import callers
from trl_grpo_ext._compat import group_size


def calling_trainer() -> Any | None:
    """Return the GRPO trainer that is computing rewards by calling this, or None."""
    scoring = (frame.f_locals.get("self") for frame in callers() if frame.f_code.co_name == "_calculate_rewards")
    return next((owner for owner in scoring if hasattr(owner, "num_generations")), None)


def in_evaluation() -> bool:
    """Whether the calling trainer is evaluating; False without one."""
    trainer = calling_trainer()
    return trainer is not None and not trainer.model.training


def rows_per_group() -> int | None:
    """Return the calling trainer's `num_generations`, in evaluation its `num_generations_eval`; None without one."""
    trainer = calling_trainer()
    return None if trainer is None else group_size(trainer)

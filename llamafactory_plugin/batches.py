"""Batches count completions and must hold whole groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamafactory_plugin.checks import check_number
from llamafactory_plugin.errors import UsageError


@dataclass(frozen=True)
class BatchPlan:
    """Sizes of one generation batch, in completions over all ranks."""

    completions: int
    group_size: int

    @property
    def prompts(self) -> int:
        return self.completions // self.group_size


def batch_plan(config: Any) -> BatchPlan:
    """The sizes of one generation batch of a finished config."""
    return BatchPlan(completions=config.generation_batch_size, group_size=config.num_generations)


def check_batch(run: Any, values: Mapping[str, Any]) -> None:
    """Refuse batches that would split a group.

    Raises:
        UsageError: naming the nearest batch sizes that hold whole groups.
    """
    group_size, world_size = values["num_generations"], run.training_args.world_size
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        check_number(name, values[name], int, 1)
    if not values.get("generation_batch_size"):
        steps = values.get("steps_per_generation") or values["gradient_accumulation_steps"]
        _check_whole_groups("per_device_train_batch_size", values, group_size, world_size, steps)
    elif values["generation_batch_size"] % group_size:
        raise UsageError(
            f"grpo_config.generation_batch_size ({values['generation_batch_size']}) must be a multiple of "
            f"grpo_group_size ({group_size})."
        )
    if run.training_args.do_eval:
        _check_whole_groups("per_device_eval_batch_size", values, group_size, world_size, 1)


def _check_whole_groups(name: str, values: Mapping[str, Any], group_size: int, world_size: int, steps: int) -> None:
    batch = values[name]
    if (batch * world_size * steps) % group_size == 0:
        return
    unit = smallest_whole_groups(group_size, world_size * steps)
    legal = sorted({max(batch // unit, 1) * unit, (batch // unit + 1) * unit})
    product = f"{name} ({batch}) x {world_size} processes"
    if name == "per_device_train_batch_size":
        product += f" x gradient_accumulation_steps ({steps})"
    raise UsageError(
        f"{product} = {batch * world_size * steps} completions, which is no multiple of grpo_group_size "
        f"({group_size}): set {name} to {' or '.join(map(str, legal))}, or change grpo_group_size."
    )


def smallest_whole_groups(group_size: int, factor: int) -> int:
    """The smallest batch b with `b * factor` a multiple of `group_size`."""
    return group_size // math.gcd(group_size, factor)

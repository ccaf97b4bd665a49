"""Forward and backward of one micro-batch: stock and ours by turns, on the same weights and the same tokens."""

from __future__ import annotations

import statistics
import tempfile
from functools import lru_cache
from typing import Any

import torch

from step_parts.arithmetic import lengths, limit
from step_parts.costs import FlopCounter, Memory, now
from step_parts.models import ARMS, make_trainer, sizes
from step_parts.points import Point

Costs = dict[str, float]


def micro_batch(prompt: int, completion: int, group: int, vocabulary: int, device: Any) -> dict[str, Any]:
    """One group with a spread of lengths."""
    draw = torch.Generator().manual_seed(0)
    mask = (torch.arange(completion) < torch.tensor(lengths(completion, group))[:, None]).long()
    batch = {
        "prompt_ids": torch.randint(2, vocabulary, (1, prompt), generator=draw).repeat(group, 1),
        "prompt_mask": torch.ones(group, prompt, dtype=torch.long),
        "completion_ids": torch.randint(2, vocabulary, (group, completion), generator=draw) * mask,
        "completion_mask": mask,
        "advantages": torch.randn(group, generator=draw),
        "num_items_in_batch": mask.sum(),
    }
    return {name: value.to(device) for name, value in batch.items()}


@lru_cache(maxsize=1)
def pair(model: str, layers: int | None) -> tuple[Any, ...]:
    """A trainer of each arm, warmed up."""
    shape = sizes(model, layers)
    with tempfile.TemporaryDirectory() as folder:
        trainers = tuple(make_trainer(arm, shape, folder, 8, 8, 4, 4) for arm in ARMS)
    for trainer in trainers:
        warm_up(trainer)
    return trainers


def warm_up(trainer: Any) -> None:
    """A small update; ours then checks itself against the dense form, once for each model."""
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    run(trainer, micro_batch(64, 16, 4, trainer.model.config.vocab_size, trainer.accelerator.device))


def run(trainer: Any, batch: dict[str, Any]) -> Costs:
    """Seconds of forward and backward; the gradients stay where they are."""
    for value in trainer.model.parameters():
        if value.grad is not None:
            value.grad.zero_()
    start = now()
    loss = trainer.compute_loss(trainer.model, batch)
    middle = now()
    loss.backward()
    return {"forward": middle - start, "backward": now() - middle}


def counted(trainer: Any, batch: dict[str, Any]) -> Costs:
    """Floating-point operations, and the peak of memory above weights, gradients and the batch, of one more pass."""
    with Memory() as memory, FlopCounter() as counter:
        trainer.compute_loss(trainer.model, batch).backward()
    return {"flops": counter.total, "peak_bytes": memory.peak}


def difference(trainers: tuple[Any, ...]) -> float:
    """Largest difference of a gradient, relative to the largest gradient."""
    both = [[value.grad for value in trainer.model.parameters() if value.grad is not None] for trainer in trainers]
    largest = max(value.abs().max().item() for value in both[0])
    return max((one - other).abs().max().item() for one, other in zip(*both, strict=True)) / largest


def timed(trainers: tuple[Any, ...], batch: dict[str, Any], seconds: float, most: int) -> list[list[Costs]]:
    """The arms by turns, until this many seconds are spent."""
    seen: list[list[Costs]] = [[], []]
    while len(seen[0]) < most and (not seen[0] or sum(total(one) for arm in seen for one in arm) < seconds):
        for trainer, costs in zip(trainers, seen, strict=True):
            costs.append(run(trainer, batch))
    return seen


def total(costs: Costs) -> float:
    """Forward and backward."""
    return costs["forward"] + costs["backward"]


def compare(point: Point, seconds: float = 20.0, most: int = 5) -> dict[str, Any]:
    """Medians of both arms; `spread` is the range of the speed-up over the turns, relative to the speed-up."""
    shape, form = sizes(point.model, point.layers), (point.prompt, point.completion, point.micro_rows)
    trainers = pair(point.model, point.layers)
    batch = micro_batch(*form, shape["vocab_size"], trainers[0].accelerator.device)
    seen = timed(trainers, batch, seconds, most)
    apart = difference(trainers)
    arms = [{name: statistics.median(c[name] for c in costs) for name in costs[0]} for costs in seen]
    found = [costs | counted(trainer, batch) for trainer, costs in zip(trainers, arms, strict=True)]
    speed, bound = total(found[0]) / total(found[1]), limit(shape, *form)
    turns = [total(stock) / total(ours) for stock, ours in zip(*seen, strict=True)]
    return {
        **dict(zip(ARMS, found, strict=True)),
        "repeats": len(turns),
        "speedup": speed,
        "spread": (max(turns) - min(turns)) / speed if len(turns) > 1 else None,
        "limit": bound,
        "share_of_limit": speed / bound,
        "memory_ratio": found[1]["peak_bytes"] / found[0]["peak_bytes"],
        "gradient_difference": apart,
    }

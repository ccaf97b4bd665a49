"""A whole step of `trainer.train()`: generation with HF `generate`, rewards, loss, backward, optimizer."""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

import torch

from step_parts.arithmetic import lengths, limit
from step_parts.costs import FlopCounter, Memory, now
from step_parts.models import ARMS, EOS, make_trainer, prompts, sizes
from step_parts.phases import PHASES, Phases, StepCallback, replaced, watched
from step_parts.points import Point

_UPDATE = ("loss forward", "backward")


@contextmanager
def forced_lengths(model: Any, prompt: int, spread: list[int]) -> Iterator[None]:
    """In the model's own `generate`, let row i end with its token number `spread[i]`, and not before."""

    def force(module: Any, args: Any, output: Any) -> None:
        index = output.past_key_values.get_seq_length() - prompt
        last = torch.tensor([length == index + 1 for length in spread], device=output.logits.device)
        output.logits[:, -1, EOS] = torch.where(last, 1e9, -torch.inf).to(output.logits)

    def forcing(generate: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(generate)
        def run(*args: Any, **kwargs: Any) -> Any:
            handle = model.register_forward_hook(force)
            try:
                return generate(*args, **kwargs)
            finally:
                handle.remove()

        return run

    # Below what shares a prefill, whose own forward passes are left alone.
    with replaced(model, "generate", forcing):
        yield


def warm_up(trainer: Any, point: Point) -> None:
    """A step of short rows; ours then checks itself against the dense forms, once in a run."""
    data, short = trainer.train_dataset, replace(point, prompt=16, completion=4)
    trainer.train_dataset = prompts(short.prompt)
    step(trainer, short)
    trainer.train_dataset = data


def step(trainer: Any, point: Point) -> dict[str, float]:
    """Seconds of each phase of one step."""
    phases = Phases(lambda: (now(),))
    _train(trainer, point, phases, StepCallback(phases, _nothing, _nothing))
    return {name: spent[0] for name, spent in phases.totals.items()}


def counted_step(trainer: Any, point: Point) -> dict[str, Any]:
    """Floating-point operations of each phase, and the peak of memory above weights and optimizer; not timed."""
    peaks = []
    with Memory() as memory, FlopCounter() as counter:
        phases = Phases(lambda: (float(counter.total),))
        callback = StepCallback(phases, memory.restart, lambda: peaks.append(memory.peak))
        _train(trainer, point, phases, callback)
    return {"flops": {name: spent[0] for name, spent in phases.totals.items()}, "peak_bytes": max(peaks)}


def _nothing() -> None:
    pass


def _train(trainer: Any, point: Point, phases: Phases, callback: StepCallback) -> None:
    spread = lengths(point.completion, point.group)
    trainer.add_callback(callback)
    with ExitStack() as stack:
        stack.callback(trainer.remove_callback, callback)
        stack.enter_context(watched(trainer, phases))
        stack.enter_context(forced_lengths(trainer.model, point.prompt, spread))
        trainer.train()


def compare(point: Point, seconds: float = 60.0, most: int = 3) -> dict[str, Any]:
    """Medians per phase after a step that is too short to count, and one in which memory and operations are counted."""
    shape = sizes(point.model, point.layers)
    with tempfile.TemporaryDirectory() as folder:
        trainers = [make_trainer(arm, shape, folder, *point.shape, point.micro_rows) for arm in ARMS]
        for trainer in trainers:
            warm_up(trainer, point)
        counts = [counted_step(trainer, point) for trainer in trainers]
        seen: list[list[dict[str, float]]] = [[], []]
        while len(seen[0]) < most and (not seen[0] or sum(sum(one.values()) for arm in seen for one in arm) < seconds):
            for trainer, costs in zip(trainers, seen, strict=True):
                costs.append(step(trainer, point))
    del trainers
    gc.collect()
    arms = [{name: statistics.median(costs[name] for costs in arm) for name in PHASES} for arm in seen]
    turns = [sum(stock.values()) / sum(ours.values()) for stock, ours in zip(*seen, strict=True)]
    totals = [sum(arm.values()) for arm in arms]
    bound = step_limit(arms[0], point.group, limit(shape, point.prompt, point.completion, point.micro_rows))
    return {
        **{
            arm: {"phases": costs, "seconds": whole} | count
            for arm, costs, whole, count in zip(ARMS, arms, totals, counts, strict=True)
        },
        "repeats": len(turns),
        "speedup": totals[0] / totals[1],
        "spread": (max(turns) - min(turns)) / (totals[0] / totals[1]) if len(turns) > 1 else None,
        "limit": bound,
        "share_of_limit": totals[0] / totals[1] / bound,
        "memory_ratio": counts[1]["peak_bytes"] / counts[0]["peak_bytes"],
    }


def step_limit(stock: dict[str, float], group: int, update: float) -> float:
    """Stock's seconds over the same with a prefill of one prompt, and an update at its FLOP limit."""
    saved = stock["prefill"] * (1 - 1 / group) + sum(stock[name] for name in _UPDATE) * (1 - 1 / update)
    whole = sum(stock.values())
    return whole / (whole - saved)

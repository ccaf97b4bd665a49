"""Runs that go on from a checkpoint, and everything about a run that must be the same then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.conformance.runs import parameters

SAVING: dict[str, Any] = {"save_strategy": "steps", "lr_scheduler_type": "linear"}
# Measured with a clock; transformers divides `train_loss` by the steps of the process, or of the whole run.
CLOCK = ("runtime", "per_second", "step_time", "health/", "profiling", "train_loss")


@dataclass
class Seen:
    """What a run did, from a step on."""

    prompts: list[Any] = field(default_factory=list)
    completions: list[Any] = field(default_factory=list)
    rewards: list[Any] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)


def watch(trainer: Any) -> Seen:
    """Every generation, and the completions of every micro-batch in the order in which they are learned."""
    seen, calculate, loss = Seen(), trainer._calculate_rewards, trainer._compute_loss

    def rewarded(inputs: Any, prompts: Any, completions: Any, ids: Any) -> Any:
        rewards = calculate(inputs, prompts, completions, ids)
        seen.prompts.append(prompts)
        seen.completions.append(completions)
        seen.rewards.append(rewards.nan_to_num(-1e9).tolist())
        return rewards

    def learned(model: Any, inputs: Any) -> Any:
        seen.batches.append(inputs["completion_ids"].tolist())
        return loss(model, inputs)

    trainer._calculate_rewards, trainer._compute_loss = rewarded, learned
    return seen


def logs(trainer: Any, after: int) -> list[dict[str, Any]]:
    entries = [entry for entry in trainer.state.log_history if entry["step"] > after]
    return [
        {name: value for name, value in entry.items() if not any(part in name for part in CLOCK)} for entry in entries
    ]


def run(make: Callable[[Path], Any], folder: Path, resume: Path | None = None) -> tuple[Any, Seen]:
    """A run of its own process state: the generators are somewhere else when a resumed one begins."""
    trainer = make(folder)
    seen = watch(trainer)
    if resume is not None:
        torch.manual_seed(987)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer, seen


def assert_equal_from(make: Callable[[Path], Any], folder: Path, *steps: int) -> list[Any]:
    """Train straight, and again from each checkpoint: from there on all is the same, bit for bit."""
    straight, all_seen = run(make, folder / "straight")
    trainers = [straight]
    for at in steps:
        resumed, seen = run(make, folder / f"resumed-{at}", folder / "straight" / f"checkpoint-{at}")
        assert resumed.state.global_step == straight.state.global_step > at
        for name in ("prompts", "completions", "rewards", "batches"):
            mine, theirs = getattr(seen, name), getattr(all_seen, name)
            assert mine and mine == theirs[len(theirs) - len(mine) :], name
        assert logs(resumed, at) == logs(straight, at)
        for name, value in parameters(resumed).items():
            assert torch.equal(value, parameters(straight)[name]), name
        trainers.append(resumed)
    return trainers

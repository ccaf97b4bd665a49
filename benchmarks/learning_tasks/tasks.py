"""What a task of the benchmark is, and how a model is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

NAMES = ("addition", "stories")
Model = Any
Tokenizer = Any


@dataclass(frozen=True)
class Task:
    """One task: a start policy, prompts with a reward, and a measure on held-out prompts.

    `evaluate` returns named figures, of which `metric` is the one compared; `title` says what that is. `missing` is
    why the task can't run here, or None. A step takes `prompts` x `group` completions of `completion_length` tokens.
    """

    metric: str
    title: str
    rows: list[dict[str, str]]
    reward: Callable[..., list[float]]
    evaluate: Callable[[Model, Tokenizer], dict[str, float]]
    start: Callable[[int, Path], Path]
    prompts: int
    group: int
    completion_length: int
    learning_rate: float
    missing: str | None = None


def get_task(name: str) -> Task:
    """The task of that name."""
    return import_module(f"learning_tasks.{name}").TASK


@contextmanager
def measuring(model: Model, seed: int | None = None) -> Iterator[None]:
    """Evaluation mode without gradients; the training's random state and mode come back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        model.train(training)


def generate(model: Model, tokenizer: Tokenizer, prompts: list[str], length: int, sample: bool) -> tuple[Any, Any]:
    """Greedy completions, or samples from the policy's own distribution.

    Returns:
        The encoded prompts, and token ids of prompts and completions, (prompts, prompt length + at most `length`).
    """
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
    return inputs, model.generate(**inputs, max_new_tokens=length, pad_token_id=tokenizer.pad_token_id, **settings)

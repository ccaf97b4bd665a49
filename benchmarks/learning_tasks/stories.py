"""The pretrained stories260K (a Llama of 260,032 parameters) learns a rule: name an animal, repeat no 4-gram.

The model lies beside the repository, in `../shared/models/stories260K`; without it the task is left out.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from learning_tasks.tasks import Model, Task, Tokenizer, generate, measuring

MODEL = Path(__file__).resolve().parents[3] / "shared" / "models" / "stories260K"
ANIMALS = ("dog", "cat", "bird", "fish", "bunny", "frog", "bear", "duck")
NAMES = ("Tim", "Lily", "Ben", "Sue", "Tom", "Anna", "Max", "Mia", "Sam", "Lucy", "Jack", "Amy")
HELD_OUT_NAMES = ("Anna", "Amy", "Max")
OPENINGS = (
    "Once upon a time, there was a little child named {}.",
    "One day, {} went to the park.",
    "{} had a big red ball.",
    "It was a sunny day and {} was happy.",
    "{} and mom went to the store.",
    "One night, {} could not sleep.",
)
TRAIN = [opening.format(name) for opening in OPENINGS for name in NAMES if name not in HELD_OUT_NAMES]
HELD_OUT = [opening.format(name) for opening in OPENINGS for name in HELD_OUT_NAMES]
LENGTH, SAMPLES = 48, 8


def names_animal(text: str) -> bool:
    """Whether one of the eight animals stands in the text."""
    return any(animal in text.lower() for animal in ANIMALS)


def repeats(text: str) -> bool:
    """Whether four words occur twice in the same order."""
    words = text.lower().split()
    quadruples = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(set(quadruples)) < len(quadruples)


def animal_story(completions: list[str], **kwargs: Any) -> list[float]:
    """1 for an animal, and 0.5 where nothing is repeated: 0 to 1.5."""
    return [1.0 * names_animal(text) + 0.5 * (not repeats(text)) for text in completions]


@cache
def _reference() -> Model:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def reference_log_prob(inputs: Any, tokens: torch.Tensor) -> float:
    """Mean log-probability per token of the completions, in nats, under the untrained model: falls as text decays."""
    length = inputs["input_ids"].shape[1]
    completions = tokens[:, length:]
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(completions)], dim=1)
    logits = _reference()(tokens, attention_mask=mask).logits[:, length - 1 : -1]
    return logits.log_softmax(dim=-1).gather(-1, completions[..., None]).mean().item()


def evaluate(model: Model, tokenizer: Tokenizer) -> dict[str, float]:
    """Reward, share that names an animal, and log-probability under the start, of samples on the held-out prompts."""
    with measuring(model, seed=123):
        inputs, tokens = generate(model, tokenizer, HELD_OUT * SAMPLES, LENGTH, sample=True)
        log_prob = reference_log_prob(inputs, tokens)
    texts = tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return {
        "reward": sum(animal_story(texts)) / len(texts),
        "animal": sum(map(names_animal, texts)) / len(texts),
        "start_log_prob": log_prob,
    }


def start(seed: int, cache: Path) -> Path:
    """The pretrained model: the same for every seed."""
    return MODEL


TASK = Task(
    metric="reward",
    title="stories260K, held-out rule reward (at most 1.5)",
    rows=[{"prompt": prompt} for prompt in TRAIN],
    reward=animal_story,
    evaluate=evaluate,
    start=start,
    prompts=8,
    group=8,
    completion_length=LENGTH,
    learning_rate=2e-4,
    missing=None
    if (MODEL / "model.safetensors").is_file()
    else "../shared/models/stories260K is not beside the repository",
)

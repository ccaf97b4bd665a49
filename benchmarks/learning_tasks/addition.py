"""Two-digit addition, answer digits reversed, on the quickstart's 0.64 M-parameter Llama after a short SFT.

Of the 10,000 problems 1,000 are held out of SFT and of GRPO. The SFT of each seed stops, from step 150 on, as soon as 16 % of
the samples on *training* problems are right, so that GRPO starts from a policy that is right now and then.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from learning_tasks.tasks import Model, Task, Tokenizer, generate, measuring
from trl_grpo_ext import exact_match

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart" / "task.py"
SFT_BATCH, SFT_LEARNING_RATE = 128, 1e-3
SFT_FIRST_CHECK, SFT_CHECK_EVERY, SFT_LAST = 150, 25, 600
SFT_TARGET = 0.16
CHECKED = 500


def _quickstart() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart_task", QUICKSTART)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


quickstart = _quickstart()


def _rows(problems: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"prompt": row["instruction"], "solution": row["output"]} for row in problems]


TRAIN, HELD_OUT = map(_rows, quickstart.problems())


def accuracy(model: Model, tokenizer: Tokenizer, rows: list[dict[str, str]], sample: bool) -> float:
    """Share of exactly right answers."""
    with measuring(model, seed=0):
        inputs, tokens = generate(model, tokenizer, [r["prompt"] for r in rows], quickstart.MAX_NEW_TOKENS, sample)
    texts = tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(text == row["solution"] for text, row in zip(texts, rows, strict=True)) / len(rows)


def evaluate(model: Model, tokenizer: Tokenizer) -> dict[str, float]:
    """Greedy and sampled accuracy on the held-out problems."""
    return {
        name: accuracy(model, tokenizer, HELD_OUT, sample) for name, sample in (("greedy", False), ("sampled", True))
    }


def sft_batch(tokenizer: Tokenizer, rows: list[dict[str, str]]) -> dict[str, Any]:
    """Token ids, mask and labels of prompts with their answers; the prompt has no label."""
    texts = [row["prompt"] + row["solution"] + tokenizer.eos_token for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, label in zip(rows, labels, strict=True):
        label[: len(row["prompt"])] = -100
    return {**batch, "labels": labels}


def warm_start(seed: int, make_model: Callable[[Tokenizer, int], Model] | None = None) -> tuple[Model, Tokenizer]:
    """A new model, by default the quickstart's, after SFT up to the target."""
    tokenizer = quickstart.make_tokenizer()
    model, draw = (make_model or quickstart.make_model)(tokenizer, seed), random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=SFT_LEARNING_RATE)
    model.train()
    for step in range(1, SFT_LAST + 1):
        model(**sft_batch(tokenizer, draw.choices(TRAIN, k=SFT_BATCH))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        is_due = step >= SFT_FIRST_CHECK and step % SFT_CHECK_EVERY == 0
        if is_due and accuracy(model, tokenizer, TRAIN[:CHECKED], sample=True) >= SFT_TARGET:
            return model, tokenizer
    raise RuntimeError(f"SFT with seed {seed} did not reach {SFT_TARGET} in {SFT_LAST} steps.")


def start_folder(seed: int, cache: Path) -> Path:
    """Where the warm start of a seed is kept. The name changes with the recipe, so a stale one is never used."""
    recipe = hashlib.sha256(Path(__file__).read_bytes() + QUICKSTART.read_bytes()).hexdigest()[:12]
    return cache / f"addition-{recipe}-seed{seed}"


def kept(folder: Path, made: Callable[[], tuple[Model, Tokenizer]]) -> Path:
    """The folder with what `made` makes, made when it is not there yet."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed: an interrupted run leaves no half folder under the final name.
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            for part in made():
                part.save_pretrained(Path(unfinished) / "model")
            (Path(unfinished) / "model").rename(folder)
    return folder


def start(seed: int, cache: Path) -> Path:
    """The folder with the warm start of a seed."""
    return kept(start_folder(seed, cache), lambda: warm_start(seed))


TASK = Task(
    metric="greedy",
    title="held-out two-digit addition, greedy accuracy",
    rows=TRAIN,
    reward=exact_match,
    evaluate=evaluate,
    start=start,
    prompts=32,
    group=8,
    completion_length=quickstart.MAX_NEW_TOKENS,
    learning_rate=3e-4,
)

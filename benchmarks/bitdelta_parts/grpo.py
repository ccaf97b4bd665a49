"""A GRPO delta made by this product: two-digit addition (benchmarks/learning.py), on bf16 checkpoints.

The model is wider than that of benchmarks/learning.py: at rows of 128 weights a scale per row costs 0.125 bits per weight,
and the arms would not have equal bytes; at rows of 384 and more it is 0.04.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from learning_tasks import addition
from learning_tasks.arms import parse_arm
from learning_tasks.run import CpuBudget, Job, load, quiet, train
from torch import Tensor
from transformers import LlamaForCausalLM

from bitdelta_parts.arms import deltas, divergence, loaded, sizes, table
from trl_grpo_ext.bitdelta import compress

ARM = "grpo"
SEED = 0
# What large models are trained at: few weights move by a whole step of bf16.
SMALL_RATE = 1e-6
SIZES = {"hidden_size": 384, "intermediate_size": 768, "num_hidden_layers": 2}
# A third of the narrow model's, which is a third as wide (arXiv 2203.03466).
RATE = 1e-4


def make_model(tokenizer: Any, seed: int) -> Any:
    """Return the quickstart's model, wider."""
    config = addition.quickstart.make_model(tokenizer, seed).config
    config.update(SIZES | {"head_dim": SIZES["hidden_size"] // config.num_attention_heads})
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def start(quick: bool, cache: Path) -> Path:
    """Return the folder of the policy that GRPO begins with; quick: the narrow one of benchmarks/learning.py."""
    if quick:
        return addition.start(SEED, cache)
    recipe = Path(addition.__file__).read_bytes() + repr(SIZES).encode()
    folder = cache / f"addition-wide-{hashlib.sha256(recipe).hexdigest()[:12]}"
    return addition.kept(folder, lambda: addition.warm_start(SEED, make_model))


def trained(begin: Path, cache: Path, seconds: float, folder: Path, rate: float) -> tuple[Any, int]:
    """Train by GRPO for these CPU seconds; write `base` and `tuned` in bf16, and return tokenizer and steps."""
    quiet()
    job = Job("addition", ARM, "none", SEED, seconds, cache)
    model, tokenizer = load(begin)
    model.bfloat16().save_pretrained(folder / "base")
    model.float()
    task = replace(addition.TASK, learning_rate=rate)
    steps = train(task, parse_arm(ARM), job, model, tokenizer, CpuBudget(seconds, lambda: 0.0, shares=()))
    model.bfloat16().save_pretrained(folder / "tuned")
    return tokenizer, steps


def batches(tokenizer: Any, rows: list[dict[str, str]], count: int) -> list[dict[str, Tensor]]:
    """Return prompts with their answers as batches of 64."""
    made = [addition.sft_batch(tokenizer, rows[64 * place : 64 * (place + 1)]) for place in range(count)]
    return [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in made]


def quality(folder: Path, quick: bool, cache: Path) -> list[dict[str, Any]]:
    """Return what every arm keeps: KL divergence, and the reward, which is greedy accuracy on held-out problems."""
    quiet()
    begin = start(quick, cache)
    tokenizer, steps = trained(begin, cache, 4.0 if quick else 60.0, folder, RATE)
    base, tuned = loaded(folder / "base"), loaded(folder / "tuned")
    tokenizer.padding_side = "left"
    held, problems = addition.HELD_OUT[: 200 if quick else None], batches(tokenizer, addition.HELD_OUT, 4)

    def figures(model: Any) -> dict[str, Any]:
        reward = addition.accuracy(model, tokenizer, held, sample=False)
        return {"KL": round(divergence(tuned, model, problems), 6), "reward": round(reward, 4), "steps": steps}

    found = deltas(folder, tuned, batches(tokenizer, addition.TRAIN, 4), 20 if quick else 80)
    rows = table("GRPO", base, tuned, found, figures)
    whole = rows[-1]["reward"]
    return [row | {"reward_retained": round(row["reward"] / whole, 4) if whole else None} for row in rows]


def small_steps(folder: Path, quick: bool, cache: Path) -> dict[str, Any]:
    """Return what the ladder makes of a run at a small learning rate, whose delta is sparse in bf16."""
    _, steps = trained(start(quick, cache), cache, 2.0 if quick else 10.0, folder, SMALL_RATE)
    report = compress(folder / "base", folder / "tuned", folder / "delta")
    kept = same(folder / "tuned", folder / "delta")
    codecs = report.summary()["codecs"]
    figures = {"steps": steps, "codecs": codecs, "every_bit": kept}
    return {"arm": f"GRPO, rate {SMALL_RATE:g}: the ladder"} | sizes(report) | figures


def same(first: Path, second: Path) -> bool:
    """Whether two checkpoints or deltas give the same bits, through AutoModel."""
    one, other = (loaded(path).state_dict() for path in (first, second))
    return all(torch.equal(one[name], other[name]) for name in one)

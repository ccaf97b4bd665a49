"""An SFT-like delta: a byte model trained on this repository's code, fine-tuned on its documentation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from bitdelta_parts.arms import deltas, divergence, table

ROOT = Path(__file__).resolve().parents[2]
# Rows of 640 weights: a scale per row costs 0.05 bits, so that every 1-bit arm has equal bytes within 5 %.
SIZES = {"vocab_size": 256, "hidden_size": 640, "intermediate_size": 1280, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 10, "num_key_value_heads": 10, "head_dim": 64}


def corpus(kind: str) -> Tensor:
    """Return the bytes of this repository's Python files, or of its documentation."""
    files = sorted((ROOT / "trl_grpo_ext").rglob("*.py")) if kind == "code" else sorted((ROOT / "docs").glob("*.md"))
    data = b"\n".join(file.read_bytes() for file in files)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def batch(data: Tensor, seed: int, rows: int = 8, length: int = 48) -> dict[str, Tensor]:
    """Return windows of a text."""
    starts = torch.randint(0, len(data) - length, (rows,), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": torch.stack([data[start : start + length] for start in starts.tolist()])}


def train(model: nn.Module, data: Tensor, steps: int, rate: float) -> nn.Module:
    """Train all parameters."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0)
    for step in range(steps):
        rows = batch(data, step)["input_ids"]
        model(input_ids=rows, labels=rows).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def quality(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Return what every arm keeps, on text that neither training nor calibration saw."""
    torch.manual_seed(0)
    model: Any = Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS, tie_word_embeddings=True))
    prose = corpus("prose")
    held, prose = prose[-len(prose) // 5 :], prose[: -len(prose) // 5]
    train(model, corpus("code"), 60 if quick else 300, 1e-3).save_pretrained(folder / "base")
    base = copy.deepcopy(model)
    train(model, prose, 30 if quick else 150, 1e-4).save_pretrained(folder / "tuned")
    calibration = [batch(prose, 30_000 + seed) for seed in range(4)]
    fresh = [batch(held, 10_000 + seed) for seed in range(4)]
    found = deltas(folder, model, calibration, 20 if quick else 80)
    return table("SFT", base, model, found, lambda item: {"KL": round(divergence(model, item, fresh), 6)})

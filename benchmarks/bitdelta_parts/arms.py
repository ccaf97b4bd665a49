"""What is compared in quality: BitDelta as published and distilled, groups, ours, and the lossless code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from trl_grpo_ext.bitdelta import BitDeltaConfig, collect_inputs, compress, distill

PLAIN: dict[str, Any] = {"fit": "mean", "codec": "sign"}
BITDELTA = "BitDelta (matrix, mean)"
DISTILLED = "BitDelta + distillation"
OURS = "ours (rows, activation)"
CONFIGS = {
    BITDELTA: BitDeltaConfig(scale="matrix", **PLAIN),
    "group 128, mean": BitDeltaConfig(group_size=128, **PLAIN),
    OURS: BitDeltaConfig(codec="sign"),
    "ours, the ladder": BitDeltaConfig(),
    "lossless": BitDeltaConfig(codec="lossless"),
}
BETTER = {BITDELTA: DISTILLED, OURS: "ours + distillation"}


def deltas(
    folder: Path, tuned: nn.Module, batches: Sequence[Mapping[str, Tensor]], steps: int
) -> dict[str, tuple[Path, Any]]:
    """Return folder and report of every arm's delta; checkpoints stand in `base` and `tuned`."""
    inputs, found = collect_inputs(tuned, batches, tokens=1024), {}
    for number, (name, config) in enumerate(CONFIGS.items()):
        target = folder / f"delta-{number}"
        given = inputs if name.startswith("ours") else None
        found[name] = (target, compress(folder / "base", folder / "tuned", target, config, inputs=given))
        if name in BETTER:
            better = folder / f"delta-{number}-distilled"
            found[BETTER[name]] = (better, distill(target, tuned, batches, better, steps=steps))
    return found


def loaded(folder: Path) -> Any:
    """Return a checkpoint or delta in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def sizes(report: Any) -> dict[str, Any]:
    """Return bits per weight of the matrices that signs may code, and of everything; embeddings are never signs."""
    linear = [entry for key, entry in report.tensors.items() if "embed" not in key and len(entry.shape) == 2]
    bits = 8 * sum(entry.nbytes for entry in linear) / sum(entry.numel for entry in linear)
    figures = {"linear_bits": round(bits, 4), "all_bits": round(report.bits_per_weight, 4)}
    return figures | {"density": round(report.density, 3)}


@torch.no_grad()
def divergence(tuned: nn.Module, model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """Return KL(fine-tuned || model) per token, in nats, padding left out."""
    total, count = 0.0, 0
    for batch in batches:
        kept = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        wanted, found = (item(**batch).logits[kept].float().log_softmax(-1) for item in (tuned, model))
        total += float((wanted.exp() * (wanted - found)).sum())
        count += int(kept.sum())
    return total / count


def table(
    kind: str, base: nn.Module, tuned: nn.Module, found: Mapping[str, tuple[Path, Any]], figures: Callable[..., Any]
) -> list[dict[str, Any]]:
    """Return a row per arm, the base without any delta first; `figures` measures a model."""
    rows = [{"arm": f"{kind}: no delta", "linear_bits": 0.0, "all_bits": 0.0} | figures(base)]
    rows += [
        {"arm": f"{kind}: {name}"} | sizes(report) | figures(loaded(path)) for name, (path, report) in found.items()
    ]
    report = next(iter(found.values()))[1]
    whole = 8.0 * report.full_bytes / sum(entry.numel for entry in report.tensors.values())
    return [*rows, {"arm": f"{kind}: fine-tuned", "linear_bits": whole, "all_bits": whole} | figures(tuned)]

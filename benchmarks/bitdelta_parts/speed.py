"""Bandwidth of packing and unpacking, size and speed of the lossless code, and the latency of a swap."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from bitdelta_parts.tensors import normal, rl_like, step_size
from trl_grpo_ext.bitdelta import BitDeltaConfig, DeltaModel, compress
from trl_grpo_ext.bitdelta.codecs import add_delta, decode, encoded_signs
from trl_grpo_ext.bitdelta.ladder import Ladder
from trl_grpo_ext.bitdelta.signs import sign_code
from trl_grpo_ext.bitdelta.sparse import sparse_code, sparse_decode

DENSITY = 0.05
ROUNDS = 9


def alternated(
    arms: dict[str, Callable[[], Any]],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.process_time,
    before_each: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, float]:
    """Return the least seconds of every arm, whose calls take turns; `before_each` runs before an arm, and is not counted.

    CPU seconds on one thread are the wall-clock seconds of an idle machine; on a busy one a long call waits for others in
    the middle, a short one does not, and wall-clock ratios would be of the load. Reading from a disk takes no CPU seconds.
    """
    best = dict.fromkeys(arms, float("inf"))
    for _ in range(rounds):
        for name, function in arms.items():
            (before_each or {}).get(name, lambda: None)()
            before = clock()
            function()
            best[name] = min(best[name], clock() - before)
    return best


def evict(folder: Path) -> None:
    """Take a checkpoint's files out of the page cache, so that the next load reads the disk."""
    for file in folder.glob("*.safetensors"):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def touched(model: Any) -> float:
    """Read a number of every page of the weights: loading maps a file, and reads nothing before that."""
    return sum(float(weight.detach().view(-1)[::1024].sum()) for weight in model.parameters())


def published_packing(base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor]:
    """Return signs, 32 to a word along the input, and mean |delta|: the paper's formula, whole and in int64."""
    delta = tuned.float() - base.float()
    bits = (delta >= 0).T.reshape(-1, 32, delta.shape[0]).to(torch.int64)
    return (bits << torch.arange(32)[None, :, None]).sum(1).to(torch.int32), delta.abs().mean()


def bandwidth(side: int) -> list[dict[str, Any]]:
    """Compress and materialise one matrix, beside copy, add and the published packing.

    Copy, add and materialise write to weights that are there, as a swap does; to a new tensor, for which the system must
    find memory first, both copy and materialise are measured as well.
    """
    base = normal((side, side), 0, 0.02).bfloat16()
    tuned = (base.float() + normal((side, side), 1, 1e-3)).bfloat16()
    out, shape = torch.empty_like(base), [side, side]
    item = encoded_signs(sign_code(base, tuned, 1, "row", None), "row")
    ladder, one = Ladder(BitDeltaConfig()), base.numel() * 2 / 1e9
    arms: dict[str, Callable[[], Any]] = {
        "bf16 add": lambda: torch.add(base, tuned, out=out),
        "bf16 copy": lambda: out.copy_(base),
        "bf16 copy to a new tensor": base.clone,
        "compress, sign and row scale": lambda: sign_code(base, tuned, 1, "row", None),
        "compress, the whole ladder": lambda: ladder.choose("mlp.weight", base, tuned),
        "materialise": lambda: add_delta(item, base, out),
        "materialise a new tensor": lambda: decode(item, base, shape, torch.bfloat16, torch.bfloat16),
    }
    best = alternated(arms) | alternated({"compress, published packing": lambda: published_packing(base, tuned)}, 3)
    moved = {name: one if "copy" in name or "materialise" in name else 2 * one for name in best}
    return [{"arm": name, "side": side, "GB_per_s": round(moved[name] / seconds, 3)} for name, seconds in best.items()]


def lossless(numel: int) -> list[dict[str, Any]]:
    """Return the size and speed of the lossless code at three densities."""
    return [_lossless(numel, density) for density in (DENSITY, 0.3, 0.33)]


def _lossless(numel: int, density: float) -> dict[str, Any]:
    base, tuned = rl_like(density, numel)
    code = sparse_code(base, tuned)
    assert torch.equal(sparse_decode(code, base), tuned)
    arms = {"compress": lambda: sparse_code(base, tuned), "materialise": lambda: sparse_decode(code, base)}
    best, size = alternated(arms, 2), numel * 2 / 1e9
    speeds = {
        "compress_GB_per_s": round(2 * size / best["compress"], 3),
        "materialise_GB_per_s": round(size / best["materialise"], 3),
    }
    bits = round(8 * code.nbytes / numel, 3)
    return {"arm": "lossless, RL-like delta", "density": density, "bits_per_weight": bits} | speeds


def _variant(base: Any, seed: int, dense: bool) -> Any:
    """Return a model with every linear weight changed a little, or the share DENSITY of them by one step of bf16."""
    model = Qwen3ForCausalLM(base.config).bfloat16()
    model.load_state_dict(base.state_dict())
    with torch.no_grad():
        for place, (name, weight) in enumerate(model.named_parameters()):
            if weight.ndim == 2 and "embed" not in name:
                steps = normal(tuple(weight.shape), seed * 1000 + place, 1.0)
                size = 1e-3 if dense else step_size(weight[:64], steps[:64], DENSITY)
                weight.copy_((weight.float() + steps * size).bfloat16())
    return model


def swap(folder: Path, layers: int) -> list[dict[str, Any]]:
    """Swap between two variants over a resident base, against loading a whole checkpoint."""
    sizes = {"vocab_size": 1024, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64}
    torch.manual_seed(0)
    base: Any = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, tie_word_embeddings=True)).bfloat16()
    base.save_pretrained(folder / "base")
    return [
        _swaps(folder, base, f"lossless delta, density {DENSITY}", False),
        _swaps(folder, base, "1-bit delta", True),
    ]


def _swaps(folder: Path, base: Any, kind: str, dense: bool) -> dict[str, Any]:
    served: Any = DeltaModel(folder / "base")
    for seed, name in enumerate("ab", 1):
        tuned, delta = folder / f"{dense}-{name}", folder / f"{dense}-delta-{name}"
        _variant(base, seed, dense).save_pretrained(tuned)
        compress(folder / "base", tuned, delta, BitDeltaConfig(max_rank=0))
        served.load(name, delta)
    arms = {
        "cold_load_s": lambda: touched(AutoModelForCausalLM.from_pretrained(tuned, torch_dtype="auto")),
        "cached_load_s": lambda: touched(AutoModelForCausalLM.from_pretrained(tuned, torch_dtype="auto")),
        "swap_s": lambda: touched(served.activate("a" if served.active == "b" else "b")),
    }
    megabytes = {"checkpoint_MB": sum(p.numel() for p in base.parameters()) * 2 / 1e6}
    megabytes["resident_MB_per_variant"] = served.nbytes("a") / 1e6
    best = alternated(arms, 6, time.perf_counter, {"cold_load_s": lambda: evict(tuned)})
    times = {name: round(seconds, 4) for name, seconds in best.items()}
    return {"arm": f"swap, {kind}"} | {name: round(size, 1) for name, size in megabytes.items()} | times

"""What delta compression costs and keeps: bandwidth, memory, swap latency, size, and quality at equal bytes.

Baselines, measured in the same run on the same tensors: a bf16 copy and a bf16 add (bandwidth), the published BitDelta
packing written from the paper's formula (every bit shifted in int64 and summed; arXiv 2402.10193), a full
`from_pretrained` (swap), and BitDelta with mean scales and with scales distilled on logits (quality: KL divergence of
the fine-tuned model from the compressed one, on text that neither calibration nor training saw).

Memory is anonymous memory above what stood after the imports; mapped pages do not count. Times are the least of several
rounds, on one thread. Reward retained is not measured here, and its goals are written as unmet.

    python benchmarks/bitdelta.py [--quick] [--json PATH]
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM  # noqa: E402

from trl_grpo_ext.bitdelta import BitDeltaConfig, collect_inputs, compress, export  # noqa: E402
from trl_grpo_ext.bitdelta.codecs import decode, encoded_signs  # noqa: E402
from trl_grpo_ext.bitdelta.ladder import Ladder  # noqa: E402
from trl_grpo_ext.bitdelta.materialise import open_base, tensors  # noqa: E402
from trl_grpo_ext.bitdelta.packing import unpack_signs  # noqa: E402
from trl_grpo_ext.bitdelta.reading import Delta  # noqa: E402
from trl_grpo_ext.bitdelta.signs import sign_code  # noqa: E402
from trl_grpo_ext.bitdelta.sparse import sparse_code, sparse_decode  # noqa: E402

# (goal, whether larger is better, key of the figure)
GOALS: dict[str, tuple[float, bool, str]] = {
    "compress, share of bf16-add bandwidth": (0.25, True, "compress"),
    "compress, times the published packing": (10, True, "packing"),
    "materialise, share of copy bandwidth": (0.15, True, "materialise"),
    "peak memory above 2x the largest tensor, MB": (512, False, "memory"),
    "swap, share of a cold full load": (0.25, False, "swap"),
    "KL, share of BitDelta + distillation at equal bytes": (0.5, False, "kl"),
    "lossless bits per weight at density 0.33": (2.4, False, "bits 0.33"),
    "lossless bits per weight at density 0.3": (1.3, False, "bits 0.3"),
    "lossless bits per weight at density 0.05": (0.6, False, "bits 0.05"),
    "reward retained on the addition task": (0.99, True, "reward"),
}


def normal(shape: tuple[int, ...], seed: int, size: float) -> Tensor:
    """Return Gaussian noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


def seconds(function: Callable[[], Any], rounds: int = 7) -> float:
    """Return the least wall-clock seconds of some calls."""
    found = []
    for _ in range(rounds):
        before = time.perf_counter()
        function()
        found.append(time.perf_counter() - before)
    return min(found)


def published_packing(base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor]:
    """Return signs, 32 to a word along the input, and mean |delta|: the paper's formula, whole and in int64."""
    delta = tuned.float() - base.float()
    bits = (delta >= 0).T.reshape(-1, 32, delta.shape[0]).to(torch.int64)
    return (bits << torch.arange(32)[None, :, None]).sum(1).to(torch.int32), delta.abs().mean()


def bandwidth(side: int) -> list[dict[str, Any]]:
    """Compress and materialise one matrix, beside copy, add and the published packing."""
    base = normal((side, side), 0, 0.02).bfloat16()
    tuned = (base.float() + normal((side, side), 1, 1e-3)).bfloat16()
    out, shape = torch.empty_like(base), [side, side]
    item = encoded_signs(sign_code(base, tuned, 1, "row", None), "row")
    ladder, one = Ladder(BitDeltaConfig()), base.numel() * 2 / 1e9
    arms: dict[str, tuple[float, Callable[[], Any]]] = {
        "bf16 add": (2 * one, lambda: torch.add(base, tuned, out=out)),
        "compress, published packing": (2 * one, lambda: published_packing(base, tuned)),
        "compress, sign and row scale": (2 * one, lambda: sign_code(base, tuned, 1, "row", None)),
        "compress, the whole ladder": (2 * one, lambda: ladder.choose("mlp.weight", base, tuned)),
        "bf16 copy": (one, lambda: out.copy_(base)),
        "materialise": (one, lambda: decode(item, base, shape, torch.bfloat16, torch.bfloat16)),
    }
    return [
        {"arm": name, "side": side, "GB_per_s": round(size / seconds(run), 3)} for name, (size, run) in arms.items()
    ]


def rl_like(density: float, numel: int) -> tuple[Tensor, Tensor]:
    """Return bf16 weights, and what one small step of uniform size in fp32 makes of them at this density."""
    base = normal((numel,), 0, 0.02).bfloat16()
    steps = torch.empty(numel).uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    low, high = 1e-8, 1e-2
    for _ in range(40):
        size = math.sqrt(low * high)
        tuned = (base.float() + steps * size).bfloat16()
        low, high = (size, high) if float((tuned != base).float().mean()) < density else (low, size)
    return base, tuned


def lossless(numel: int) -> list[dict[str, Any]]:
    """Return the size and speed of the lossless code at three densities."""
    rows = []
    for density in (0.05, 0.3, 0.33):
        base, tuned = rl_like(density, numel)
        code = sparse_code(base, tuned)
        assert torch.equal(sparse_decode(code, base), tuned)
        size = numel * 2 / 1e9
        speeds = {
            "compress_GB_per_s": round(2 * size / seconds(lambda b=base, t=tuned: sparse_code(b, t), 2), 3),
            "materialise_GB_per_s": round(size / seconds(lambda c=code, b=base: sparse_decode(c, b), 2), 3),
        }
        bits = round(8 * code.nbytes / numel, 3)
        rows.append({"arm": "lossless, RL-like delta", "density": density, "bits_per_weight": bits} | speeds)
    return rows


def memory_child(folder: Path, layers: int, side: int) -> None:
    """Compress and export a synthetic checkpoint, and print the peak of anonymous memory."""
    import threading

    from safetensors.torch import save_file

    for name, step in (("base", 0.0), ("tuned", 1e-3)):
        (folder / name).mkdir()
        weight_map = {f"layers.{layer}.weight": f"model-{layer}.safetensors" for layer in range(layers)}
        for layer, (tensor, file) in enumerate(weight_map.items()):
            weight = normal((side, side), layer, 0.02) + normal((side, side), layer + 1000, step)
            save_file({tensor: weight.bfloat16()}, folder / name / file)
        (folder / name / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024

    del weight
    before, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    compress(folder / "base", folder / "tuned", folder / "delta")
    export(folder / "delta", folder / "out")
    done.set()
    watcher.join()
    print(peak[0] - before)


def memory(layers: int, side: int) -> dict[str, Any]:
    """Measure the peak in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--memory-child", folder, str(layers), str(side)]
        peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    tensor = 2 * side * side
    sizes = {
        "checkpoint_MB": layers * tensor / 1e6,
        "largest_tensor_MB": tensor / 1e6,
        "peak_MB": round(peak / 1e6, 1),
    }
    return {"arm": "memory, compress and export"} | sizes | {"above_MB": round((peak - 2 * tensor) / 1e6, 1)}


def swap(folder: Path) -> dict[str, Any]:
    """Make a variant's tensors from a resident base, against loading its whole checkpoint.

    The first time checks base and delta; later ones do not.
    """
    delta, tuned = Delta(folder / "ours"), folder / "tuned"
    source = open_base(delta, folder / "base")
    full = seconds(lambda: AutoModelForCausalLM.from_pretrained(tuned), 3)
    first = seconds(lambda: dict(tensors(delta, source)), 1)
    warm = seconds(lambda: dict(tensors(delta, source)), 3)
    return {"arm": "swap", "full_load_s": round(full, 4), "first_s": round(first, 4), "swap_s": round(warm, 4)}


def corpus(kind: str) -> Tensor:
    """Return the bytes of this repository's Python files, or of its documentation."""
    files = sorted((ROOT / "trl_grpo_ext").rglob("*.py")) if kind == "code" else sorted((ROOT / "docs").glob("*.md"))
    data = b"\n".join(file.read_bytes() for file in files)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long() % 256


def batch(data: Tensor, seed: int, rows: int = 8, length: int = 48) -> Tensor:
    """Return windows of a text."""
    starts = torch.randint(0, len(data) - length, (rows,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([data[start : start + length] for start in starts.tolist()])


def train(model: nn.Module, data: Tensor, steps: int, rate: float) -> nn.Module:
    """Train all parameters."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0)
    for step in range(steps):
        rows = batch(data, step)
        model(input_ids=rows, labels=rows).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def divergence(tuned: nn.Module, model: nn.Module, data: Tensor) -> float:
    """Return KL(fine-tuned || model) per token, on held-out windows, in nats."""
    total = 0.0
    for seed in range(4):
        rows = batch(data, 10_000 + seed)
        wanted, found = (item(rows).logits.float().log_softmax(-1) for item in (tuned, model))
        total += float((wanted.exp() * (wanted - found)).sum(-1).mean()) / 4
    return total


def distilled(base: nn.Module, tuned: nn.Module, delta: Delta, data: Tensor, steps: int) -> nn.Module:
    """Return BitDelta with scale distillation: one scale per matrix, trained on the fine-tuned model's logits."""
    model = copy.deepcopy(tuned)
    held, start, parts = dict(model.named_parameters()), dict(base.named_parameters()), {}
    scales = {}
    for name, entry in delta.tensors.items():
        if entry.codec == "sign":
            parts[name] = unpack_signs(delta.encoded(name).parts["sign"][0], entry.shape[1])
            scales[name] = delta.encoded(name).parts["scale"][0].log().clone().requires_grad_()
    optimizer = torch.optim.Adam(list(scales.values()), 3e-2)
    for step in range(steps):
        rows = batch(data, 20_000 + step, 4)
        weights = {name: start[name].detach() + scale.exp() * parts[name] for name, scale in scales.items()}
        found = torch.func.functional_call(model, weights, (rows,)).logits
        (found - tuned(rows).logits.detach()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for name, scale in scales.items():
            held[name].copy_(start[name] + scale.exp() * parts[name])
    return model


def quality(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Train a base on code, fine-tune it on prose, and compare what the codecs keep."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": 640, "intermediate_size": 1280, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 10, "num_key_value_heads": 10, "head_dim": 64}
    model: Any = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, tie_word_embeddings=True))
    code, prose = corpus("code"), corpus("prose")
    held, prose = prose[-len(prose) // 5 :], prose[: -len(prose) // 5]
    train(model, code, 60 if quick else 600, 1e-3).save_pretrained(folder / "base")
    base = copy.deepcopy(model)
    train(model, prose, 30 if quick else 300, 1e-4).save_pretrained(folder / "tuned")
    inputs = collect_inputs(model, [batch(prose, 30_000 + seed) for seed in range(4)], tokens=1024)
    plain = {"fit": "mean", "codec": "sign"}
    arms = {
        "BitDelta (matrix, mean)": BitDeltaConfig(scale="matrix", **plain),
        "group 128, mean": BitDeltaConfig(group_size=128, **plain),
        "ours": BitDeltaConfig(),
        "lossless": BitDeltaConfig(codec="lossless"),
    }
    none = divergence(model, base, held)
    rows = [{"arm": "no delta", "sign_bits_per_weight": 0.0, "KL": round(none, 6)}]
    for name, config in arms.items():
        target = folder / {"ours": "ours"}.get(name, name.replace(" ", "-"))
        report = compress(folder / "base", folder / "tuned", target, config, inputs=inputs if name == "ours" else None)
        loaded = AutoModelForCausalLM.from_pretrained(target).eval()
        rows.append(arm(name, report, divergence(model, loaded, held)))
        if name.startswith("BitDelta"):
            trained = distilled(base, model, Delta(target), prose, 20 if quick else 80)
            rows.append(arm("BitDelta + distillation", report, divergence(model, trained, held)))
    return rows


def arm(name: str, report: Any, kl: float) -> dict[str, Any]:
    """Return a row of the quality table; embeddings are kept without loss in every arm, and counted apart."""
    linear = [entry for key, entry in report.tensors.items() if "embed" not in key and len(entry.shape) == 2]
    bits = 8 * sum(entry.nbytes for entry in linear) / sum(entry.numel for entry in linear)
    figures = {"sign_bits_per_weight": round(bits, 4), "bits_with_embeddings": round(report.bits_per_weight, 4)}
    return {"arm": name, **figures, "density": round(report.density, 3), "KL": round(kl, 6)}


def measure(quick: bool, folder: Path) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """Return the rows and the goals' figures."""
    speeds = bandwidth(2048 if quick else 4096)
    exact, room = lossless((1 << 20) if quick else (1 << 24)), memory(*(16, 2048) if quick else (120, 4096))
    kept = quality(folder, quick)
    swapped = swap(folder)
    rate = {row["arm"]: row["GB_per_s"] for row in speeds}
    found = {row["arm"]: row for row in kept}
    figures: dict[str, float | None] = {
        "compress": round(rate["compress, sign and row scale"] / rate["bf16 add"], 3),
        "packing": round(rate["compress, sign and row scale"] / rate["compress, published packing"], 2),
        "materialise": round(rate["materialise"] / rate["bf16 copy"], 3),
        "memory": room["above_MB"],
        "swap": round(swapped["swap_s"] / swapped["full_load_s"], 3),
        "kl": round(found["ours"]["KL"] / found["BitDelta + distillation"]["KL"], 3),
        "reward": None,
    }
    figures |= {f"bits {row['density']}": row["bits_per_weight"] for row in exact}
    return [*speeds, *exact, room, swapped, *kept], figures


def judge(figures: dict[str, float | None]) -> list[dict[str, Any]]:
    """Compare with the goals; what was not measured is not met."""
    goals = []
    for name, (limit, larger, key) in GOALS.items():
        value = figures[key]
        met = value is not None and (value >= limit if larger else value <= limit)
        goals.append({"name": name, "goal": f"{'>=' if larger else '<='} {limit}", "value": value, "met": met})
    return goals


def run(quick: bool) -> dict[str, Any]:
    """Measure everything in a temporary folder."""
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows, figures = measure(quick, Path(folder))
    environment = {"python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count()}
    environment |= {"quick": quick, "load_before_and_after": [round(load, 2), round(os.getloadavg()[0], 2)]}
    return {"name": "bitdelta", "environment": environment, "results": rows, "goals": judge(figures)}


def main() -> int:
    """Print the tables; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="smaller matrices, a smaller checkpoint, shorter training"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures to this file")
    parser.add_argument("--memory-child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_child:
        folder, layers, side = arguments.memory_child
        memory_child(Path(folder), int(layers), int(side))
        return 0
    report = run(arguments.quick)
    for row in report["results"]:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    for goal in report["goals"]:
        verdict = "met" if goal["met"] else "UNMET" if goal["value"] is not None else "UNMET (not measured)"
        print(f"{goal['name']}: {goal['value']} (goal {goal['goal']}): {verdict}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(goal["met"] for goal in report["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())

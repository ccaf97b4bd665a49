"""What delta compression costs and keeps: bandwidth, memory, swap latency, size, and quality at equal bytes.

Baselines, measured in the same run on the same tensors: a bf16 copy and a bf16 add (bandwidth), the published BitDelta
packing written from the paper's formula (every bit shifted in int64 and summed; arXiv 2402.10193), a full
`from_pretrained` (swap), and BitDelta with mean scales and with scales distilled on logits (quality).

    speed     GB/s on one matrix, the lossless code at three densities, swaps between two variants
    memory    peak of anonymous memory above what stood after the imports; mapped pages do not count
    sft       KL divergence of a fine-tuned model from what every codec keeps of it, on held-out text
    grpo      the same, and the reward (greedy accuracy), of a GRPO run of this product on two-digit addition

Times are CPU seconds on one thread, the least of several rounds in which the arms take turns. The model of `grpo` has rows of 128
weights, where a scale per row costs 0.25 bits: the arms' bytes stand beside their quality, and are not equal there.

    python benchmarks/bitdelta.py [--quick] [--json PATH] [--only speed,memory,sft,grpo] [--cache DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from bitdelta_parts import grpo, sft, speed
from bitdelta_parts.arms import BETTER, DISTILLED, OURS
from bitdelta_parts.memory import child, memory

PARTS = ("speed", "memory", "sft", "grpo")
# (goal, whether larger is better, key of the figure)
GOALS: dict[str, tuple[float, bool, str]] = {
    "compress, share of bf16-add bandwidth": (0.25, True, "compress"),
    "compress with the whole ladder, share of bf16-add bandwidth": (0.25, True, "ladder"),
    "compress, times the published packing": (10, True, "packing"),
    "materialise, share of copy bandwidth": (0.15, True, "materialise"),
    "peak memory above 2x the largest tensor, MB": (512, False, "memory"),
    "swap of 1-bit deltas, share of a cold full load": (0.25, False, "swap"),
    "swap of lossless deltas of density 0.05, share of a cold full load": (0.25, False, "sparse swap"),
    "SFT: KL, share of BitDelta + distillation at equal bytes": (0.5, False, "kl"),
    "SFT: KL with distillation, share of BitDelta + distillation at equal bytes": (0.5, False, "distilled kl"),
    "lossless bits per weight at density 0.33": (2.4, False, "bits 0.33"),
    "lossless bits per weight at density 0.3": (1.3, False, "bits 0.3"),
    "lossless bits per weight at density 0.05": (0.6, False, "bits 0.05"),
    "GRPO: reward retained by the ladder": (0.99, True, "reward"),
    "GRPO at a small rate, density <= 0.3, every bit kept: bits per weight": (1.3, False, "sparse bits"),
    "GRPO: reward retained by the lossless code": (1.0, True, "exact reward"),
}


def measure_speed(quick: bool, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return rows and figures of the part `speed`."""
    rows, exact = speed.bandwidth(2048 if quick else 4096), speed.lossless(1 << (20 if quick else 23))
    swaps = speed.swap(folder, 2 if quick else 4)
    rate = {row["arm"]: row["GB_per_s"] for row in rows}
    code = rate["compress, sign and row scale"]
    sparse, dense = (row["swap_s"] / row["full_load_s"] for row in swaps)
    figures = {
        "compress": code / rate["bf16 add"],
        "ladder": rate["compress, the whole ladder"] / rate["bf16 add"],
        "packing": code / rate["compress, published packing"],
        "materialise": rate["materialise"] / rate["bf16 copy"],
        "swap": dense,
        "sparse swap": sparse,
    }
    figures |= {f"bits {row['density']}": row["bits_per_weight"] for row in exact}
    return [*rows, *exact, *swaps], figures


def measure_memory(quick: bool, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return rows and figures of the part `memory`."""
    row = memory(__file__, *(16, 2048) if quick else (120, 4096))
    return [row], {"memory": row["above_MB"]}


def measure_sft(quick: bool, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return rows and figures of the part `sft`."""
    rows = sft.quality(folder, quick)
    found = {row["arm"].removeprefix("SFT: "): row["KL"] for row in rows}
    figures = {"kl": found[OURS] / found[DISTILLED], "distilled kl": found[BETTER[OURS]] / found[DISTILLED]}
    return rows, figures


def measure_grpo(quick: bool, folder: Path, cache: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return rows and figures of the part `grpo`."""
    learned, small = folder / "learned", folder / "small"
    learned.mkdir(), small.mkdir()
    rows, sparse = grpo.quality(learned, quick, cache), grpo.small_steps(small, quick, cache)
    retained = {row["arm"].removeprefix("GRPO: "): row["reward_retained"] for row in rows}
    figures = {"reward": retained["ours, the ladder"], "exact reward": retained["lossless"]}
    if sparse["every_bit"] and sparse["density"] <= 0.3:
        figures["sparse bits"] = sparse["all_bits"]
    return [*rows, sparse], figures


def judge(figures: dict[str, float | None]) -> list[dict[str, Any]]:
    """Compare with the goals; what was not measured is not met."""
    goals = []
    for name, (limit, larger, key) in GOALS.items():
        value = figures.get(key)
        met = value is not None and (value >= limit if larger else value <= limit)
        shown = None if value is None else round(value, 3)
        goals.append({"name": name, "goal": f"{'>=' if larger else '<='} {limit}", "value": shown, "met": met})
    return goals


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts, each in a temporary folder."""
    torch.set_num_threads(1)
    load, rows, figures = os.getloadavg()[0], [], {}
    for part in options.only:
        with tempfile.TemporaryDirectory() as folder:
            given = (options.cache,) if part == "grpo" else ()
            found, values = globals()[f"measure_{part}"](options.quick, Path(folder), *given)
            for row in found:
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows += found
            figures |= values
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    environment = {"python": platform.python_version(), **versions, "cpus": os.cpu_count(), "parts": options.only}
    environment |= {"quick": options.quick, "load_before_and_after": [round(load, 2), round(os.getloadavg()[0], 2)]}
    return {"name": "bitdelta", "environment": environment, "results": rows, "goals": judge(figures)}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller matrices and checkpoints, shorter training")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures to this file")
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated parts (default: all)")
    text = "folder of the warm starts of benchmarks/learning.py"
    parser.add_argument("--cache", type=Path, default=Path("build/learning/starts"), help=text)
    parser.add_argument("--memory-child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := [part for part in options.only if part not in PARTS]:
        parser.error(f"--only must be of {', '.join(PARTS)}, not {unknown[0]!r}")
    return options


def main() -> int:
    """Print the tables; exit status 1 when a goal is missed."""
    options = parse()
    if options.memory_child:
        folder, layers, side = options.memory_child
        child(Path(folder), int(layers), int(side))
        return 0
    report = run(options)
    for goal in report["goals"]:
        verdict = "met" if goal["met"] else "UNMET" if goal["value"] is not None else "UNMET (not measured)"
        print(f"{goal['name']}: {goal['value']} (goal {goal['goal']}): {verdict}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(goal["met"] for goal in report["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())

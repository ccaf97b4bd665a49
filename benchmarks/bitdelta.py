"""What delta compression costs and keeps: bandwidth, memory, swap latency, size, and quality at equal bytes.

Baselines, measured in the same run on the same tensors: a bf16 copy and a bf16 add (bandwidth), the published BitDelta
packing written from the paper's formula (every bit shifted in int64 and summed; arXiv 2402.10193), a full
`from_pretrained` (swap), and BitDelta with mean scales and with scales distilled on logits (quality).

    speed     GB/s on one matrix, the lossless code at three densities, swaps between two variants
    memory    peak of anonymous memory above what stood after the imports; mapped pages do not count
    sft       KL divergence of a fine-tuned model from what every codec keeps of it, on held-out text
    grpo      the same, and the reward (greedy accuracy), of a GRPO run of this product on two-digit addition

Times are CPU seconds on one thread, the least of several rounds in which the arms take turns; of swaps and loads, wall-clock
seconds. A cold load reads the disk; from the page cache, where transformers maps the files, a load copies nothing.

    python benchmarks/bitdelta.py [--quick] [--json PATH] [--only speed,memory,sft,grpo] [--cache DIR]
    python benchmarks/bitdelta.py --table PATH [--readme README.md]     the README's tables from a file written earlier
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from bitdelta_parts import grpo, readme, sft, speed
from bitdelta_parts.arms import BETTER, DISTILLED, OURS
from bitdelta_parts.goals import PARTS, judge, line, merged
from bitdelta_parts.memory import child, memory


def measure_speed(quick: bool, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return rows and figures of the part `speed`."""
    rows, exact = speed.bandwidth(2048 if quick else 4096), speed.lossless(1 << (20 if quick else 23))
    swaps = speed.swap(folder, 2 if quick else 4)
    rate = {row["arm"]: row["GB_per_s"] for row in rows}
    code = rate["compress, sign and row scale"]
    sparse, dense = (row["swap_s"] / row["cold_load_s"] for row in swaps)
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


def at_equal_bytes(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return bytes and KL divergence of ours, as shares of BitDelta's with distillation."""
    found = {row["arm"].split(": ")[1]: row for row in rows}
    theirs = found[DISTILLED]
    figures = {key: found[arm]["KL"] / theirs["KL"] for key, arm in (("kl", OURS), ("distilled kl", BETTER[OURS]))}
    return figures | {"bytes": found[OURS]["all_bits"] / theirs["all_bits"]}


def measure_sft(quick: bool, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return rows and figures of the part `sft`."""
    rows = sft.quality(folder, quick)
    return rows, at_equal_bytes(rows)


def measure_grpo(quick: bool, folder: Path, cache: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return rows and figures of the part `grpo`."""
    learned, small = folder / "learned", folder / "small"
    learned.mkdir(), small.mkdir()
    rows, sparse = grpo.quality(learned, quick, cache), grpo.small_steps(small, quick, cache)
    retained = {row["arm"].removeprefix("GRPO: "): row["reward_retained"] for row in rows}
    figures = at_equal_bytes(rows)
    figures |= {"reward": retained["ours, the ladder"], "exact reward": retained["lossless"]}
    if sparse["every_bit"] and sparse["density"] <= 0.3:
        figures["sparse bits"] = sparse["all_bits"]
    return [*rows, sparse], figures


MEASURES: dict[str, Callable[..., tuple[list[dict[str, Any]], dict[str, Any]]]] = {
    "speed": measure_speed,
    "memory": measure_memory,
    "sft": measure_sft,
    "grpo": measure_grpo,
}


def environment(quick: bool, load: float) -> dict[str, Any]:
    """Where and how a part was measured."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    loads = [round(load, 2), round(os.getloadavg()[0], 2)]
    return versions | {"cpus": os.cpu_count(), "quick": quick, "load_before_and_after": loads}


def run(part: str, quick: bool, cache: Path) -> dict[str, Any]:
    """Measure a part in a temporary folder, and print its rows."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        given = (cache,) if part == "grpo" else ()
        rows, figures = MEASURES[part](quick, Path(folder), *given)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    rows = [{"part": part} | row for row in rows]
    where = {part: environment(quick, load)}
    return {"name": "bitdelta", "environment": where, "results": rows, "goals": judge(part, figures)}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller matrices and checkpoints, shorter training")
    text = "write the figures to this file, each part as soon as it is measured; other parts in it stay"
    parser.add_argument("--json", type=Path, metavar="PATH", help=text)
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated parts (default: all)")
    text = "folder of the warm starts of benchmarks/learning.py"
    parser.add_argument("--cache", type=Path, default=Path("build/learning/starts"), help=text)
    text = "print the README's tables from this file, and end; with --readme write them into that file instead"
    parser.add_argument("--table", type=Path, metavar="PATH", help=text)
    parser.add_argument("--readme", type=Path, metavar="PATH", help="the file with the marks between which they stand")
    parser.add_argument("--memory-child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := [part for part in options.only if part not in PARTS]:
        parser.error(f"--only must be of {', '.join(PARTS)}, not {unknown[0]!r}")
    if options.readme and not options.table:
        parser.error("--readme needs --table")
    return options


def show(path: Path, target: Path | None) -> None:
    """Print the README's tables, or write them into it."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if target is None:
        print(readme.tables(document))
    else:
        readme.rewrite(target, document)


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a document, with the parts that the file had before."""
    if path.is_file():
        document = merged(json.loads(path.read_text(encoding="utf-8")), document)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print figures and goals; exit status 1 when a goal is missed."""
    options = parse(arguments)
    if options.memory_child:
        folder, layers, side = options.memory_child
        child(Path(folder), int(layers), int(side))
        return 0
    if options.table:
        show(options.table, options.readme)
        return 0
    torch.set_num_threads(1)
    goals = []
    for part in options.only:
        document = run(part, options.quick, options.cache)
        goals += document["goals"]
        if options.json:
            write(options.json, document)
    print(*map(line, goals), sep="\n")
    return 0 if all(goal["met"] for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())

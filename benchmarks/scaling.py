"""Memory and step time of GRPO on 1 to 64 GPUs and 0.5 to 72 billion parameters: a model, not a measurement.

Its pieces: how much memory an update takes above its weights, measured by `benchmarks/step.py` on a CPU
(`results/step.json`); sizes and speeds of models and GPUs as published (`scaling_parts/shapes.py` names the sources).
The same formulas with the CPU's measured speeds are held against the measured points: those are the goals.

    python benchmarks/scaling.py [--quick] [--json PATH] [--results benchmarks/results/step.json]

Seconds are what the step takes at least: decoding reads memory at the data sheet's speed, as a good engine nearly does
and transformers' `generate` by far does not. `--quick` leaves out all but 1, 8 and 64 GPUs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from scaling_parts import measured  # noqa: E402
from scaling_parts.measured import Coefficients  # noqa: E402
from scaling_parts.shapes import H100, MODELS, parameters  # noqa: E402
from scaling_parts.step_cost import Cost, Work, cost, fewest_gpus  # noqa: E402

GPUS = (1, 2, 4, 8, 16, 32, 64)
QUICK = (1, 8, 64)
METHODS = ("lora", "full")


def errors(rows: list[dict[str, Any]], found: Coefficients) -> dict[str, list[float]]:
    """Relative errors of the formulas against what was measured: (predicted - measured) / measured."""
    made, whole = measured.updates(rows), measured.steps(rows)
    pairs = {
        "memory of an update": [(measured.predicted_peak(row, found), row["ours"]["peak_bytes"]) for row in made],
        "seconds of an update": [
            (measured.predicted_update(row, found), row["ours"]["forward"] + row["ours"]["backward"]) for row in made
        ],
        "seconds of decoding": [
            (measured.predicted_decode(row, found), row["ours"]["phases"]["decode"]) for row in whole
        ],
    }
    return {name: [(guess - true) / true for guess, true in both] for name, both in pairs.items()}


def goals(rows: list[dict[str, Any]], found: Coefficients) -> list[dict[str, Any]]:
    """The median error of each formula, which should be at most a quarter."""
    medians = {name: statistics.median(map(abs, values)) for name, values in errors(rows, found).items()}
    return [
        {"name": f"{name}: median error", "goal": "at most 0.25", "value": round(value, 3), "met": value <= 0.25}
        for name, value in medians.items()
    ]


def points(gpus: tuple[int, ...], found: Coefficients, work: Work) -> list[dict[str, Any]]:
    """Every model, method and number of GPUs."""
    listed = []
    for name, shape in MODELS.items():
        for method in METHODS:
            for count in gpus:
                one = cost(shape, count, method, work, found, H100)
                place = {"model": name, "parameters": parameters(shape), "method": method, "gpus": count}
                listed.append(place | vars(one) | {"memory": one.memory, "seconds": one.seconds})
    return listed


def cell(one: Cost) -> str:
    """GB per GPU and seconds; brackets where it does not fit."""
    text = f"{one.memory / 1e9:.0f} GB, {one.seconds:.1f} s"
    return text if one.memory < 0.9 * H100.memory else f"({one.memory / 1e9:.0f} GB)"


def table(gpus: tuple[int, ...], found: Coefficients, work: Work) -> str:
    """Markdown."""
    lines = ["| model | method | " + " | ".join(map(str, gpus)) + " | fewest GPUs |", "| --- " * (len(gpus) + 3) + "|"]
    for name, shape in MODELS.items():
        for method in METHODS:
            cells = [cell(cost(shape, count, method, work, found, H100)) for count in gpus]
            fewest = fewest_gpus(shape, method, work, found, H100)
            lines.append(f"| {name} | {method} | " + " | ".join(cells) + f" | {fewest or 'none'} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory and step time of GRPO by formula.")
    parser.add_argument("--quick", action="store_true", help="1, 8 and 64 GPUs only")
    parser.add_argument("--json", type=Path, default=None, help="write the points here")
    parser.add_argument("--results", type=Path, default=measured.RESULTS, help="the file of benchmarks/step.py")
    options = parser.parse_args()
    rows, work, gpus = measured.load(options.results), Work(), QUICK if options.quick else GPUS
    found = measured.fit(rows)
    reached = goals(rows, found)
    print(f"{H100.name} (quoted); {work.rows} completions of {work.completion} tokens per GPU, prompt {work.prompt}\n")
    print(table(gpus, found, work) + "\n")
    for goal in reached:
        print(f"{goal['name']} {goal['value']} ({goal['goal']}): {'met' if goal['met'] else 'unmet'}")
    if options.json:
        environment = {"hardware": vars(H100) | {"source": "quoted"}, "coefficients": vars(found)}
        content = {"name": "scaling", "environment": environment, "results": points(gpus, found, work)}
        options.json.write_text(json.dumps(content | {"goals": reached}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

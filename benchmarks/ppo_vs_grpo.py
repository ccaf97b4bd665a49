"""GRPO against PPO with a value network of the same size: memory and tokens per second of a whole training step.

ppo     a plain PPO step on TRL's own generation and log-probabilities (`step_parts/ppo.py`): the baseline
grpo    stock TRL's GRPOTrainer
ours    ExtendedGRPOTrainer with every exact option of batching on

All three train the same policy on the same prompts with the same settings, by turns in one process, one thread, through
`trainer.train()` with HF generation of the same forced lengths; none has a reference model, and PPO makes one pass over
its batch. Memory is the peak of live tensors in a step after the first: weights, gradients, optimizer states and
activations. Tokens are those of the completions.

Goals: what is said of GRPO in general, 40 % less memory and twice the speed of PPO; stock TRL is measured as well, so
that it can be seen what comes from GRPO and what from this package. Exit status 1 when a goal is missed.

    python benchmarks/ppo_vs_grpo.py [--quick] [--json PATH]
    python benchmarks/ppo_vs_grpo.py --table PATH      prints the README's table from a file written earlier
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # before torch is imported
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import gc
import json
import logging
import statistics
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from step_parts import report, whole_step
from step_parts.arithmetic import lengths
from step_parts.costs import Memory
from step_parts.goals import goal
from step_parts.models import make_trainer, sizes
from step_parts.points import Point
from step_parts.ppo import ReferencePPO
from step_parts.results import environment

ARMS = ("ppo", "grpo", "ours")
POINTS = [
    Point("step", "toy", 256, 128, 8),
    Point("step", "toy", 1024, 128, 8),
    Point("step", "half_billion", 256, 128, 8),
]
QUICK = [Point("step", "quick", 128, 32, 8)]
MEMORY, SPEED = 0.6, 2.0


def make(arm: str, point: Point, folder: str) -> Any:
    """The trainer of an arm."""
    more = {"trainer_class": ReferencePPO} if arm == "ppo" else {}
    kind = "ours" if arm == "ours" else "stock"
    return make_trainer(kind, sizes(point.model), folder, *point.shape, point.micro_rows, **more)


def prepared(arm: str, point: Point, folder: str) -> tuple[Any, int]:
    """A trainer after two steps, and the peak of memory in the second of them, in bytes."""
    with Memory() as memory:
        trainer = make(arm, point, folder)
        whole_step.step(trainer, point)
        memory.restart()
        whole_step.step(trainer, point)
        return trainer, memory.most


def measure(point: Point, repeats: int) -> dict[str, Any]:
    """All arms on one point; medians."""
    with tempfile.TemporaryDirectory() as folder:
        found = [prepared(arm, point, folder) for arm in ARMS]
        seconds: list[list[float]] = [[] for _ in ARMS]
        for _ in range(repeats):
            for (trainer, _), seen in zip(found, seconds, strict=True):
                seen.append(sum(whole_step.step(trainer, point).values()))
    tokens = sum(lengths(point.completion, point.group))
    arms = {
        arm: {
            "peak_bytes": peak,
            "seconds": statistics.median(seen),
            "tokens_per_second": tokens / statistics.median(seen),
        }
        for arm, (_, peak), seen in zip(ARMS, found, seconds, strict=True)
    }
    del found
    gc.collect()
    return {"model": point.model, "prompt": point.prompt, "completion": point.completion, "group": point.group} | arms


def ratios(row: Mapping[str, Any], arm: str) -> tuple[float, float]:
    """Memory and speed of an arm, relative to PPO."""
    one, ppo = row[arm], row["ppo"]
    return one["peak_bytes"] / ppo["peak_bytes"], one["tokens_per_second"] / ppo["tokens_per_second"]


def name(row: Mapping[str, Any]) -> str:
    """`model (P, C, G)`."""
    return f"{row['model']} ({row['prompt']}, {row['completion']}, {row['group']})"


def goals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The two claims, for stock GRPO and for ours, at every point."""
    found = []
    for row in rows:
        for arm in ARMS[1:]:
            memory, speed = ratios(row, arm)
            found.append(goal(f"memory of {arm} over PPO, {name(row)}", "at most", MEMORY, memory))
            found.append(goal(f"tokens per second of {arm} over PPO, {name(row)}", "at least", SPEED, speed))
    return found


def readme_table(document: Mapping[str, Any]) -> str:
    """The README's table, made of the written file alone."""
    where, lines = document["environment"], []
    for row in document["results"]:
        for arm in ARMS:
            memory, speed = ratios(row, arm)
            one = row[arm]
            cells = [f"{one['peak_bytes'] / 2**20:.0f}", f"{memory:.2f}", f"{one['tokens_per_second']:.1f}"]
            lines.append([name(row), arm, *cells, f"{speed:.2f}"])
    header = ["model (P, C, G)", "step", "peak MiB", "of PPO", "tokens/s", "of PPO"]
    said = (
        "`ppo` is a plain PPO step with a value network of the same size on TRL's generation; no reference model "
        f"anywhere. TRL {where['trl']}, torch {where['torch']}; {where['device']}; {where['clock']}."
    )
    return report.table(header, lines) + "\n\n" + said


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and the goals, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, one repeat, under two minutes")
    parser.add_argument("--json", type=Path, metavar="PATH")
    parser.add_argument("--table", type=Path, metavar="PATH", help="print the README's table from this file, and end")
    options = parser.parse_args(arguments)
    if options.table:
        print(readme_table(json.loads(options.table.read_text(encoding="utf-8"))))
        return 0
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", message=".*is not used")
    logging.disable(logging.WARNING)
    rows = [measure(point, 1 if options.quick else 3) for point in (QUICK if options.quick else POINTS)]
    document = {"name": "ppo_vs_grpo", "environment": environment(), "results": rows, "goals": goals(rows)}
    print(readme_table(document), "", *map(report.goal_line, document["goals"]), sep="\n")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all(one["met"] for one in document["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())

"""A training step: stock GRPOTrainer against ours with every exact option of batching on.

Baseline: TRL's own `GRPOTrainer` on the same weights, data, seed and settings, by turns in one process, one thread.

update      forward and backward of one micro-batch: seconds, floating-point operations by torch's counter, peak of
            memory above weights, gradients and batch, and the gradients compared. `limit` is how much less arithmetic
            the shared form does than stock: matrix products of layers, attention and head, counted from the shapes.
scaling     the same for 2 to 16 completions of one prompt, for the picture
step        `trainer.train()` with HF generation, forced to completions of C down to C/4 tokens: seconds and operations
            of prefill, decode, scoring, reward, loss forward, backward and optimizer; the trainer's methods are wrapped
            from outside. Here the limit is stock's time with one prefill per prompt and an update at its own limit.

Every point is written to the file when it is measured; a later call goes on with the points that are missing. On CPU:
fp32, CPU seconds; where there is a GPU: bf16, wall seconds. Exit status 1 when a goal is missed.

    python benchmarks/step.py [--quick] [--json PATH] [--output DIR] [--points PATTERN ...]
    python benchmarks/step.py --points 'update/toy/*'     measures these anew, whatever the file holds
    python benchmarks/step.py --table PATH [--output DIR] prints the README's tables from a file, draws its picture
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # before torch is imported
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from step_parts import picture, points, report, update, whole_step
from step_parts.points import Point
from step_parts.results import Results


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; refuses patterns that fit no point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few points, under two minutes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="the figures' file; missing points are added to it")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the picture, step.png")
    parser.add_argument("--points", nargs="+", metavar="PATTERN", help="only points like these, measured anew")
    parser.add_argument("--table", type=Path, metavar="PATH", help="print the README's tables from this file, and end")
    options = parser.parse_args(arguments)
    options.all = points.quick() if options.quick else points.full()
    try:
        options.chosen = points.selected(options.all, options.points) if options.points else options.all
        options.results = None if options.table else Results(options.json)
    except ValueError as error:
        parser.error(str(error))
    return options


def quiet() -> None:
    """Leave out what the trainers say at every step, and not what says that a form is not used."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", message=".*is not used")
    logging.disable(logging.WARNING)


def measure(point: Point, results: Results) -> None:
    """Measure a point, and say what was found."""
    if point.part == "step":
        update.pair.cache_clear()
    results.add(point, (whole_step if point.part == "step" else update).compare(point))
    row = results.rows[-1]
    print(report.line(row), *(report.phase_lines(row) if point.part == "step" else []), sep="\n", flush=True)


def draw(folder: Path | None, document: dict[str, object]) -> None:
    """Write the picture where a folder is given."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        picture.draw(folder / "step.png", document)
        print(f"written: {folder / 'step.png'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, print the goals, and draw; exit status 1 when a goal is missed."""
    torch.set_num_threads(1)
    options = parse(arguments)
    if options.table:
        document = json.loads(options.table.read_text(encoding="utf-8"))
        print(report.readme_table(document))
        draw(options.output, document)
        return 0
    quiet()
    for point in options.chosen:
        if options.points or not options.results.has(point):
            measure(point, options.results)
    document = options.results.document()
    print(*map(report.goal_line, document["goals"]), sep="\n")
    draw(options.output, document)
    return 0 if all(goal["met"] for goal in document["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())

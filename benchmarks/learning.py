"""Do presets learn better than TRL's default? Two small tasks, real training, equal CPU seconds for every run.

addition    held-out two-digit addition, greedy accuracy; a 0.64 M-parameter Llama after a short SFT, made here per seed
stories     the pretrained stories260K learns to name an animal without repeating itself (held-out openings, at most
            1.5); needs ../shared/models/stories260K, and is left out with a word where that is not there

Baseline: stock TRL's GRPOTrainer with every option of the loss at its default. The other arms are presets of
`trl_grpo_ext.presets` on ExtendedGRPOTrainer; `NAME@2` is the preset with num_iterations 2. All have the same batch,
learning rate and start; the learning rate was chosen for the baseline. Controls, on the baseline: rewards shuffled over
the rows of a step, and negated; neither may learn.

Every run trains for the same CPU seconds (`time.process_time`, one thread; set-up and evaluation are not counted), and
the learning rate falls to 0 over them. So a preset with cheaper steps makes more of them, and figures differ a little
from one call to the next. Intervals: 95 % t intervals over the seeds, of each mean and of the difference from the
baseline, paired by seed; one seed, as in --quick, has none, and a few seconds of training may miss a goal by chance.

    python benchmarks/learning.py [--quick] [--json PATH] [--output DIR] [--presets A,B@2] [--seeds N] [--cpu-seconds S]
    python benchmarks/learning.py --table PATH      prints the README's table from a file written earlier
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # before torch is imported; worker processes inherit it
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false"}

import argparse
import json
import multiprocessing
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from learning_tasks import report
from learning_tasks.arms import BASELINE, CONTROLS, DEFAULT_ARMS, make_config, parse_arm
from learning_tasks.intervals import MOST_SEEDS, comparisons, goals
from learning_tasks.run import Job, prepare, run
from learning_tasks.tasks import NAMES, get_task

FULL = {"seeds": 3, "cpu_seconds": 30.0, "presets": ",".join(DEFAULT_ARMS)}
QUICK = {"seeds": 1, "cpu_seconds": 6.0, "presets": "trl,grpo"}


class InThisProcess(Executor):
    """Runs each call where it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def executor(processes: int) -> Executor:
    """One core each; fresh interpreters, because torch's threads don't survive a fork."""
    if processes == 1:
        return InThisProcess()
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Every run, seed by seed, so that other load on the machine falls on all arms alike."""
    for seed in range(options.seeds):
        for task in options.tasks:
            for arm in options.presets:
                yield Job(task, arm, "none", seed, options.cpu_seconds, options.cache)
            for control in CONTROLS:
                yield Job(task, BASELINE, control, seed, options.cpu_seconds, options.cache)


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """All runs in the order of `jobs`, and one line for each that failed."""
    with executor(options.processes) as pool:
        starts = [
            pool.submit(prepare, task, seed, options.cache) for seed in range(options.seeds) for task in options.tasks
        ]
        for start in starts:
            start.result()
        futures = {pool.submit(run, job): job for job in jobs(options)}
        for future in as_completed(futures):
            if future.exception() is None:
                row = future.result()
                print(report.run_line(row, get_task(row["task"]).metric), flush=True)
    failed = [
        f"{job.task} {job.arm} {job.control} seed {job.seed}: {f.exception()!r}"
        for f, job in futures.items()
        if f.exception()
    ]
    return [future.result() for future in futures if future.exception() is None], failed


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """Where and how the figures were made."""
    packages = {name: version(name) for name in ("trl", "transformers", "torch")}
    return {
        "line": f"TRL {packages['trl']}, transformers {packages['transformers']}, torch {packages['torch']}",
        **packages,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "tasks": options.tasks,
        "seeds": options.seeds,
        "cpu_seconds": options.cpu_seconds,
        "processes": options.processes,
        "clock": "time.process_time of training, evaluation not counted",
        "interval": "95 % t interval over seeds; differences paired by seed",
    }


def make_document(options: argparse.Namespace, rows: list[dict[str, Any]], where: dict[str, Any]) -> dict[str, Any]:
    """The file's content."""
    metrics = {task: get_task(task).metric for task in options.tasks}
    results = [*rows, *comparisons(rows, metrics)]
    return {"name": "learning", "environment": where, "results": results, "goals": goals(rows, metrics)}


def write(options: argparse.Namespace, document: dict[str, Any]) -> None:
    """Write JSON, CSV and picture, and say where."""
    options.output.mkdir(parents=True, exist_ok=True)
    target = options.json or options.output / "learning.json"
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    report.write_csv(options.output / "learning.csv", document)
    report.plot(options.output / "learning.png", document)
    print(f"\nwritten: {target}, {options.output / 'learning.csv'}, {options.output / 'learning.png'}")


def show(document: dict[str, Any]) -> None:
    """Print the comparisons and the goals."""
    print()
    for row in document["results"]:
        if row["kind"] == "comparison":
            print(report.comparison_line(row))
    for goal in document["goals"]:
        print("{name}: {value} (goal {goal}): {verdict}".format(verdict="met" if goal["met"] else "UNMET", **goal))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what is not given comes from the full or the quick setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, 6 CPU seconds per run, presets trl and grpo")
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="the figures' file (default: learning.json in --output)"
    )
    parser.add_argument("--output", type=Path, default=Path("build/learning"), help="folder of CSV and picture")
    parser.add_argument("--cache", type=Path, default=Path("build/learning/starts"), help="folder of the warm starts")
    parser.add_argument("--presets", help="comma-separated; TRL's default is always among them")
    parser.add_argument("--tasks", default=",".join(NAMES), help="comma-separated, of " + " and ".join(NAMES))
    parser.add_argument("--seeds", type=int, help=f"1 to {MOST_SEEDS} (default 3)")
    parser.add_argument("--cpu-seconds", type=float, help="of each run (default 30)")
    parser.add_argument("--processes", type=int, default=2, help="runs at the same time, one core each (default 2)")
    parser.add_argument("--table", type=Path, metavar="PATH", help="print the README's table from this file, and end")
    options = parser.parse_args(arguments)
    for name, value in (QUICK if options.quick else FULL).items():
        setattr(options, name, value if getattr(options, name) is None else getattr(options, name))
    try:
        check(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def check(options: argparse.Namespace) -> None:
    """Split the lists and refuse what can't run, before any model is made.

    Raises:
        ValueError: an unknown preset or task, or a number out of range.
    """
    options.presets = list(dict.fromkeys([BASELINE, *options.presets.split(",")]))
    options.tasks = list(dict.fromkeys(options.tasks.split(",")))
    options.output, options.cache = options.output.resolve(), options.cache.resolve()
    unknown = [task for task in options.tasks if task not in NAMES]
    if unknown:
        raise ValueError(f"--tasks must be of {', '.join(NAMES)}, not {unknown[0]!r}.")
    if not 1 <= options.seeds <= MOST_SEEDS:
        raise ValueError(f"--seeds must be 1 to {MOST_SEEDS}, not {options.seeds}.")
    if not options.cpu_seconds > 0:
        raise ValueError(f"--cpu-seconds must be above 0, not {options.cpu_seconds}.")
    if options.processes < 1:
        raise ValueError(f"--processes must be 1 or more, not {options.processes}.")
    arms = [parse_arm(name) for name in options.presets]
    if not options.table:
        for arm in arms:
            make_config(arm, get_task(options.tasks[0]), seed=0, output_dir=str(options.output))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a goal is missed or a run failed."""
    options = parse(arguments)
    if options.table:
        print(report.readme_table(json.loads(options.table.read_text(encoding="utf-8"))))
        return 0
    for task in list(options.tasks):
        if missing := get_task(task).missing:
            print(f"{task} is left out: {missing}")
            options.tasks.remove(task)
    if not options.tasks:
        return 1
    # Before the runs, whose own load is not meant.
    where = environment(options)
    rows, failed = measure(options)
    document = make_document(options, rows, where)
    show(document)
    write(options, document)
    for line in failed:
        print(f"FAILED {line}", file=sys.stderr)
    return 0 if not failed and all(goal["met"] for goal in document["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())

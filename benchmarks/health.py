"""Are the rules of health silent on the healthy runs of benchmarks/learning.py, and do they speak on its controls?

The runs are those of benchmarks/learning.py: the same tasks, presets, start policies and CPU seconds, each with
`HealthCallback` and every step logged. A healthy run is one with the true reward, the baseline beside it the same run
with rewards shuffled over the rows of a step, which teaches nothing: `reward_flat`, or `dead_groups` before it, has to say
so where the run has the 50 log entries that the former waits for. Flipped rewards are run and told, and are no goal: such a run learns what it is
asked to.

    python benchmarks/health.py [--quick] [--json PATH] [--presets A,B@2] [--tasks A,B] [--seeds N] [--cpu-seconds S]
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # before torch is imported
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false"}

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import learning
from learning_tasks.arms import BASELINE, CONTROLS, parse_arm
from learning_tasks.run import CpuBudget, Job, load, prepare, quiet, train
from learning_tasks.tasks import NAMES, get_task

from trl_grpo_ext.health import HealthCallback
from trl_grpo_ext.health.rules import LONG

FULL = {"seeds": 3, "cpu_seconds": 30.0, "presets": "trl,grpo,dr_grpo,rloo,trl@2,dapo@2", "tasks": ",".join(NAMES)}
QUICK = {"seeds": 1, "cpu_seconds": 20.0, "presets": "trl", "tasks": "addition"}


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Every run: healthy ones per task, preset and seed, and the controls with the baseline's loss."""
    for seed in range(options.seeds):
        for task in options.tasks:
            arms = [(arm, "none") for arm in options.presets] + [(BASELINE, control) for control in options.controls]
            for arm, control in arms:
                yield Job(task, arm, control, seed, options.cpu_seconds, options.cache)


def watch(job: Job) -> dict[str, Any]:
    """Do one run; what the rules have found in it."""
    quiet()
    task = get_task(job.task)
    model, tokenizer = load(prepare(job.task, job.seed, job.cache))
    callback = HealthCallback()
    budget = CpuBudget(job.cpu_seconds, lambda: 0.0, shares=())
    steps = train(task, parse_arm(job.arm), job, model, tokenizer, budget, [callback])
    return {
        **{"kind": "run", "task": job.task, "arm": job.arm, "control": job.control, "seed": job.seed},
        **{
            "steps": steps,
            "cpu_seconds": round(budget.used, 2),
            "findings": [str(item) for item in callback.findings],
        },
        "rules": [item.rule for item in callback.findings],
    }


def goals(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """No rule speaks on a healthy run, and `reward_flat` on every shuffled one that is long enough for it."""
    healthy = [row for row in rows if row["control"] == "none"]
    spoken = sum(bool(row["rules"]) for row in healthy)
    found = [{"name": f"{len(healthy)} healthy runs with a finding", "goal": 0, "value": spoken, "met": spoken == 0}]
    shuffled = [row for row in rows if row["control"] == "shuffled" and row["steps"] >= LONG]
    if shuffled:
        # A run whose groups are dead is told that, and not that its reward is flat too.
        seen = sum(bool({"reward_flat", "dead_groups"} & set(row["rules"])) for row in shuffled)
        name = "shuffled runs of 50 steps in which reward_flat or dead_groups speaks"
        found.append({"name": name, "goal": len(shuffled), "value": seen, "met": seen == len(shuffled)})
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what is not given comes from the full or the quick setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, 20 CPU seconds per run, preset trl, addition")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    parser.add_argument("--cache", type=Path, default=Path("build/learning/starts"), help="folder of the warm starts")
    parser.add_argument("--presets", help="comma-separated, as benchmarks/learning.py has them")
    parser.add_argument("--tasks", help="comma-separated, of " + " and ".join(NAMES))
    parser.add_argument("--controls", default=",".join(CONTROLS), help="comma-separated; empty for none")
    parser.add_argument("--seeds", type=int, help="from 1 on (3)")
    parser.add_argument("--cpu-seconds", type=float, help="of each run (30)")
    options = parser.parse_args(arguments)
    for name, value in (QUICK if options.quick else FULL).items():
        setattr(options, name, value if getattr(options, name) is None else getattr(options, name))
    for name in ("presets", "tasks", "controls"):
        setattr(options, name, [item for item in getattr(options, name).split(",") if item])
    wrong = [name for name in options.tasks if name not in NAMES] + [c for c in options.controls if c not in CONTROLS]
    if wrong or options.seeds < 1 or not options.cpu_seconds > 0:
        parser.error(f"no such task, control, number of seeds or of seconds: {wrong or vars(options)}")
    options.cache, options.processes = options.cache.resolve(), 1
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a goal is missed."""
    options, rows = parse(arguments), []
    for task in list(options.tasks):
        if missing := get_task(task).missing:
            print(f"{task} is left out: {missing}")
            options.tasks.remove(task)
    where = learning.environment(options)
    for job in jobs(options):
        rows.append(watch(job))
        told = "; ".join(rows[-1]["findings"]) or "silent"
        print(f"{job.task} {job.arm} {job.control} seed {job.seed}, {rows[-1]['steps']} steps: {told}", flush=True)
    document = {"name": "health", "environment": where, "results": rows, "goals": goals(rows)}
    for goal in document["goals"]:
        print("{name}: {value} (goal {goal}): {verdict}".format(verdict="met" if goal["met"] else "UNMET", **goal))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if rows and all(goal["met"] for goal in document["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())

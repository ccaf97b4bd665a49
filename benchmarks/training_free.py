"""Training-Free GRPO in LessonWorld: does the loop learn, in the order of the paper's ablation, and does the gate hold?

LessonWorld (tests/training_free/lesson_world.py) is a scripted policy and reflector with hidden rules; it says whether
the mechanism works, and nothing about any language model. A task is of one of six kinds, and each kind has one right
method of six; without a lesson the policy finds it 35 % of the time. Every arm is trained on the same 24 problems
(3 steps, 5 rollouts each), and measured on 300 others, for every seed; how good the policy guesses and how the reflector errs are settings of World. Intervals are Student's t at 95 % over seeds,
differences are paired by seed.

Arms of the paper's ablation (its Table 2), without the gate, as there:
    base             no lessons (the baseline)
    direct           lessons written by the reflector without having seen an attempt
    no group         one rollout per problem
    no ground truth  the reward is the majority's answer (self-consistency)
    full             groups of 5, with the ground truth
With a gate of 120 held-out problems, and with a reflector that names wrong methods and harmful lessons:
    gated            full, with the acceptance gate
    weak             full, with the weak reflector
    weak gated       the same with the gate
Controls:
    null gated       lessons mean nothing in this world: what is accepted is accepted by chance
    domains          one library for two worlds, each learned after the other: own is the reward with the own
                     domain's lessons, alone that of a library that never saw the other world

    python benchmarks/training_free.py [--quick] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.training_free.lesson_world import DIRECT, World, solved  # noqa: E402
from trl_grpo_ext.estimation import t_quantile  # noqa: E402
from trl_grpo_ext.experience import ExperienceLibrary  # noqa: E402
from trl_grpo_ext.training_free import ChatRequest, GateConfig, TrainingFreeConfig, TrainingFreeGRPO  # noqa: E402
from trl_grpo_ext.training_free.parsing import parse_operations  # noqa: E402

PROBLEMS, HELD_OUT, MEASURED = 24, 120, 300
GATE = GateConfig()
SEEDS, QUICK_SEEDS = 30, 8
# Libraries of the arm "direct" per seed: how many of its guesses are right differs much between them.
DRAWS = 10


def learner(world: World, library: ExperienceLibrary | None = None, **settings: Any) -> TrainingFreeGRPO:
    """Return a learner in a world."""
    policy, reflector = world.backends()
    config = TrainingFreeConfig(**{"batch_size": PROBLEMS, "gate": None, "seed": world.seed, **settings})
    return TrainingFreeGRPO(policy, config, reflector=reflector, library=library)


def trained(world: World, reward: Any = solved, library: ExperienceLibrary | None = None, **settings: Any) -> Any:
    """Return a learner that has been trained."""
    run = learner(world, library, **settings)
    run.train(world.rows(PROBLEMS), reward, world.rows(HELD_OUT, 10_000) if run.config.gate is not None else None)
    return run


def score(run: TrainingFreeGRPO, world: World, experiences: Any = None) -> float:
    """Return the mean reward on problems that nobody has seen."""
    return run.evaluate(world.rows(MEASURED, 50_000), solved, experiences).mean


def direct_lessons(world: World, draw: int) -> list[str]:
    """Return as many lessons as there are kinds, asked for without showing an attempt; one of several draws."""
    found: list[Any] = []
    _, reflector = world.backends()
    request = ChatRequest((("system", DIRECT), ("user", "Write one lesson per kind.")), seed=draw)
    reflector.complete([request], lambda index, reply: found.append(reply))
    return [operation.text for operation in parse_operations(found[0].text, {})]


def domains(world: World) -> dict[str, float]:
    """Return rewards of two worlds that share a library, and of one that has a library for itself."""
    other, library = World(seed=world.seed + 1000, prefix="x"), ExperienceLibrary()
    one = trained(world, library=library, domain="one")
    two = trained(other, library=library, domain="two")
    alone = trained(other, domain="two")
    return {"own": score(one, world), "other own": score(two, other), "other alone": score(alone, other)}


def one_seed(seed: int) -> dict[str, float]:
    """Return every figure of one seed."""
    world = World(seed=seed)
    full = trained(world)
    figures = {f"full step {number + 1}": reward for number, reward in enumerate(full.report.rewards)}
    figures |= {"full": score(full, world), "base": score(full, world, [])}
    figures["direct"] = fmean(score(full, world, direct_lessons(world, draw)) for draw in range(DRAWS))
    figures["no group"] = score(trained(world, num_generations=1, require_spread=False), world)
    figures["no ground truth"] = score(trained(world, "self_consistency", given_ground_truth=False), world)
    figures["gated"] = score(trained(world, gate=GATE), world)
    figures["weak"] = score(trained(world.weak()), world)
    figures["weak gated"] = score(trained(world.weak(), gate=GATE), world)
    null = trained(replace(world, effect=False), gate=GATE)
    figures["null decisions"] = float(sum(bool(step["candidate"]) for step in null.report.steps))
    figures["null accepted"] = float(sum(step["accepted"] for step in null.report.steps))
    return figures | domains(world)


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return mean and 95 % interval over seeds."""
    mean = fmean(values)
    reach = t_quantile(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean, mean - reach, mean + reach


def differences(seeds: list[dict[str, float]]) -> dict[str, tuple[float, float, float]]:
    """Return the paired differences that the goals are about."""
    pairs = {
        "last step - first step": ("full step 3", "full step 1"),
        "full - no ground truth": ("full", "no ground truth"),
        "full - no group": ("full", "no group"),
        "no ground truth - direct": ("no ground truth", "direct"),
        "no group - direct": ("no group", "direct"),
        "direct - base": ("direct", "base"),
        "gated - base": ("gated", "base"),
        "weak - base": ("weak", "base"),
        "weak gated - base": ("weak gated", "base"),
        "own of two domains - alone": ("other own", "other alone"),
    }
    return {name: interval([item[a] - item[b] for item in seeds]) for name, (a, b) in pairs.items()}


def goals(found: dict[str, tuple[float, float, float]], accepted: float, decisions: float) -> list[dict[str, Any]]:
    """Return the goals of the issue: each is about the whole interval."""
    rising = ("last step - first step", "full - no ground truth", "full - no group", "gated - base")
    rising += ("no ground truth - direct", "no group - direct")
    judged = [_goal(name, "interval above 0", found[name], found[name][1] > 0) for name in rising]
    near = found["direct - base"]
    judged.append(_goal("direct - base", "interval within +-0.1", near, near[1] >= -0.1 and near[2] <= 0.1))
    judged.append(_goal("weak - base", "interval below 0", found["weak - base"], found["weak - base"][2] < 0))
    safe = found["weak gated - base"]
    judged.append(_goal("weak gated - base", "interval not below -0.01", safe, safe[1] >= -0.01))
    swap = found["own of two domains - alone"]
    judged.append(_goal("own of two domains - alone", "0 for every seed", swap, swap == (0.0, 0.0, 0.0)))
    rate = accepted / decisions if decisions else 0.0
    value = f"{accepted:.0f} of {decisions:.0f} decisions"
    goal = f"at most {GATE.alpha:g} of the decisions, with two standard errors"
    limit = GATE.alpha + 2 * math.sqrt(GATE.alpha * (1 - GATE.alpha) / max(1.0, decisions))
    return [*judged, {"name": "null case accepted", "goal": goal, "value": value, "met": rate <= limit}]


def _goal(name: str, goal: str, value: tuple[float, float, float], met: bool) -> dict[str, Any]:
    mean, low, high = value
    return {"name": name, "goal": goal, "value": f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]", "met": met}


def run(seeds: int, show: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything and print it."""
    start, measured = time.monotonic(), []
    for seed in range(seeds):
        measured.append(one_seed(seed))
        show(f"seed {seed}: full {measured[-1]['full']:.3f}, base {measured[-1]['base']:.3f}")
    results = []
    for name in measured[0]:
        mean, low, high = interval([item[name] for item in measured])
        results.append({"arm": name, "mean": mean, "low": low, "high": high, "seeds": seeds})
        show(f"{name:18s} {mean:7.4f} [{low:7.4f}, {high:7.4f}]")
    found = differences(measured)
    totals = [sum(item[f"null {what}"] for item in measured) for what in ("accepted", "decisions")]
    judged = goals(found, *totals)
    for goal in judged:
        show(f"{'met  ' if goal['met'] else 'UNMET'} {goal['name']}: {goal['value']} ({goal['goal']})")
    environment = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
    environment |= {"seeds": seeds, "seconds": round(time.monotonic() - start, 1)}
    return {"name": "training_free", "environment": environment, "results": results, "goals": judged}


def main() -> int:
    """Run, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEEDS} seeds instead of {SEEDS}")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    found = run(QUICK_SEEDS if arguments.quick else SEEDS, print)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(goal["met"] for goal in found["goals"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())

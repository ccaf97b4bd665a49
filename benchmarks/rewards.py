"""What the reward runtime costs: throughput, start-up, and how fast a deadline kills.

Baseline: math-verify called in this process, one row after the other, on the same rows in the same run; batches of
both arms alternate, so that other load on the machine falls on both. Rows are gold answers of GSM8K and MATH-500
(`../shared/data`, where it is there; made-up answers of the same kinds otherwise), each compared once with itself and
once with its neighbour. The runtime's cache is off. Neither arm uses math-verify's own timeouts.

    python benchmarks/rewards.py [--quick] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from trl_grpo_ext.rewards.runtime import IsolatedReward, RewardRuntime  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
BATCH = 256
WORKERS = 2
GOAL_THROUGHPUT, GOAL_START, GOAL_KILL = 0.8, 1.0, 1.5


def math_equal(completions: list[str], solution: list[str], **kwargs: Any) -> list[float]:
    """1.0 where math-verify finds the completion equal to the solution."""
    from math_verify import parse, verify

    return [
        float(verify(parse(gold, parsing_timeout=None), parse(text, parsing_timeout=None), timeout_seconds=None))
        for text, gold in zip(completions, solution, strict=True)
    ]


def hang(completions: list[str], **kwargs: Any) -> list[float]:
    """Hold the interpreter for ever, as a power tower in math-verify does."""
    return [float(7 ** (9**9**2)) if completions[0] == "hang" else 1.0]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def made_up_answers(count: int) -> list[str]:
    """Integers, fractions, decimals and powers, from a fixed seed."""
    draw = random.Random(0)
    forms = ("{a}", "\\frac{{{a}}}{{{b}}}", "{a}.{b}", "{a}^{{2}} + {b}", "({a}, {b})", "\\sqrt{{{a}}}")
    return [draw.choice(forms).format(a=draw.randint(1, 999), b=draw.randint(2, 99)) for _ in range(count)]


def answers() -> tuple[str, list[str]]:
    """Return where the gold answers come from, and the answers in a fixed random order."""
    gsm8k = [row["answer"].rpartition("####")[2].strip() for row in _lines(DATA / "gsm8k" / "train.jsonl")]
    math500 = [row["answer"] for row in _lines(DATA / "math500" / "math500.jsonl")]
    if not gsm8k or not math500:
        return "made up", made_up_answers(4000)
    # As many of the one as of the other: MATH's are the expensive ones.
    golds = gsm8k[: len(math500) * 3] + math500 * 3
    random.Random(0).shuffle(golds)
    return "GSM8K and MATH-500", golds


def batches(golds: list[str], count: int) -> list[tuple[list[str], list[str]]]:
    """Completions and solutions: even rows against themselves, odd rows against their neighbour."""
    texts = [f"The answer is $\\boxed{{{gold}}}$." for gold in golds]
    solutions = [f"${golds[row - row % 2]}$" for row in range(len(golds))]
    starts = [(number * BATCH) % (len(golds) - BATCH) for number in range(count)]
    return [(texts[start : start + BATCH], solutions[start : start + BATCH]) for start in starts]


def throughput(golds: list[str], rounds: int) -> list[dict[str, Any]]:
    """Score the same batches in process and through the runtime, in turns."""
    seconds: dict[str, list[float]] = {"in process": [], f"runtime, {WORKERS} workers": []}
    with RewardRuntime(workers=WORKERS) as runtime:
        isolated = IsolatedReward(
            math_equal, runtime=runtime, stateful=True, on_error="raise", imports=["math_verify"]
        )
        arms = dict(zip(seconds, (math_equal, isolated), strict=True))
        for number, (texts, solutions) in enumerate(batches(golds, rounds + 1)):
            results = {}
            for name in list(arms)[:: 1 if number % 2 else -1]:
                before = time.perf_counter()
                results[name] = arms[name](completions=texts, solution=solutions)
                seconds[name].append(time.perf_counter() - before)
            if len(set(map(tuple, results.values()))) != 1:
                raise RuntimeError("the two arms disagree")
    # The first batch warms both arms up: imports, and the grammar of the LaTeX parser.
    return [
        {"arm": name, "batch": BATCH, "rounds": rounds, "rows_per_s": round(BATCH / statistics.median(times[1:]), 1)}
        for name, times in seconds.items()
    ]


def import_seconds() -> float:
    """Seconds until as many fresh interpreters as there are workers have imported math-verify, at the same time."""
    code = "import math_verify, math_verify.parser, sympy"
    before = time.perf_counter()
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(WORKERS)]
    if any(child.wait() for child in children):
        raise RuntimeError("math-verify can't be imported")
    return time.perf_counter() - before


def start_seconds() -> tuple[float, float]:
    """Seconds until the pool is up, and until math-verify has scored a row in every worker."""
    before = time.perf_counter()
    with RewardRuntime(workers=WORKERS) as runtime:
        runtime.start()
        up = time.perf_counter() - before
        reward = IsolatedReward(math_equal, runtime=runtime, stateful=True, on_error="raise", imports=["math_verify"])
        reward(completions=["1"] * WORKERS, solution=["1"] * WORKERS)
        return up, time.perf_counter() - before


def start_up(rounds: int) -> dict[str, Any]:
    """Medians of the pool's start-up and of the imports it contains."""
    pairs = [(import_seconds(), *start_seconds()) for _ in range(rounds)]
    imports, up, first = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "arm": "start-up",
        "rounds": rounds,
        "imports_s": round(imports, 3),
        "pool_s": round(up, 3),
        "first_rewards_s": round(first, 3),
        "beyond_imports_s": round(max(up, first - imports), 3),
    }


def kill_seconds(rounds: int) -> dict[str, Any]:
    """How long a call takes whose only row hangs, with a deadline of one second."""
    times = []
    with RewardRuntime(workers=WORKERS, deadline=1.0) as runtime:
        reward = IsolatedReward(hang, runtime=runtime, stateful=True)
        for _ in range(rounds):
            reward(completions=["warm"] * 8)
            before = time.perf_counter()
            if reward(completions=["hang"]) != [None]:
                raise RuntimeError("the row was not killed")
            times.append(time.perf_counter() - before)
    return {
        "arm": "deadline of 1 s",
        "rounds": rounds,
        "median_s": round(statistics.median(times), 3),
        "max_s": round(max(times), 3),
    }


def run(quick: bool) -> dict[str, Any]:
    """Measure everything and compare with the goals."""
    source, golds = answers()
    rows = throughput(golds, rounds=6 if quick else 20)
    start, kill = start_up(3 if quick else 10), kill_seconds(3 if quick else 20)
    share = round(rows[1]["rows_per_s"] / rows[0]["rows_per_s"], 3)
    goals = [
        ("throughput against math-verify in process", f">= {GOAL_THROUGHPUT}", share, share >= GOAL_THROUGHPUT),
        (
            "start-up beyond imports, s",
            f"< {GOAL_START}",
            start["beyond_imports_s"],
            start["beyond_imports_s"] < GOAL_START,
        ),
        ("slowest kill with a deadline of 1 s, s", f"< {GOAL_KILL}", kill["max_s"], kill["max_s"] < GOAL_KILL),
    ]
    return {
        "name": "rewards",
        "environment": {
            "python": platform.python_version(),
            "machine": platform.platform(),
            "cpus": os.cpu_count(),
            "load": round(os.getloadavg()[0], 2),
            "answers": source,
        },
        "results": [*rows, start, kill],
        "goals": [dict(zip(("name", "goal", "value", "met"), goal, strict=True)) for goal in goals],
    }


def main() -> int:
    """Print the table; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 batches instead of 20, and fewer repetitions")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures to this file")
    arguments = parser.parse_args()
    report = run(arguments.quick)
    for row in report["results"]:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    for goal in report["goals"]:
        print("{name}: {value} (goal {goal}): {verdict}".format(verdict="met" if goal["met"] else "UNMET", **goal))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(goal["met"] for goal in report["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())

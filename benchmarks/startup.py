"""What the start-up file costs every Python of the environment, in milliseconds per interpreter start.

Baseline: the same environment without the start-up file, started alternately in the same run. Also measured: the
start-up file switched off by `LLAMAFACTORY_GRPO=0`, and the baseline a second time, whose difference from itself is
the noise. Figures are medians over all starts of CPU time (user and system, of the child process) and of wall time.
The goal is judged on CPU time: on a busy machine wall time measures the other processes.

    python benchmarks/startup.py [--quick] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PLUGIN = Path(__file__).resolve().parents[1] / "llamafactory_plugin"
GOAL_MS = 1.0


@dataclass(frozen=True)
class Arm:
    """One way to start the interpreter."""

    name: str
    python: str
    switch: str = "1"

    def start(self) -> tuple[float, float]:
        """Wall and CPU milliseconds of one interpreter that does nothing."""
        environment = {"PATH": os.defpath, "LLAMAFACTORY_GRPO": self.switch}
        before = time.perf_counter()
        child = os.posix_spawn(self.python, [self.python, "-c", "pass"], environment)
        _, status, usage = os.wait4(child, 0)
        wall = time.perf_counter() - before
        if status != 0:
            raise RuntimeError(f"{self.name}: the interpreter ended with status {status}")
        return 1000 * wall, 1000 * (usage.ru_utime + usage.ru_stime)


def make_environment(root: Path, with_start_file: bool) -> str:
    """A virtual environment that holds the plugin as a wheel would install it; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    (site_packages,) = root.glob("lib/python*/site-packages")
    shutil.copytree(PLUGIN, site_packages / PLUGIN.name, ignore=shutil.ignore_patterns("__pycache__", "*.pth"))
    if with_start_file:
        for suffix in ("pth", "start"):
            shutil.copy(PLUGIN / f"llamafactory_grpo.{suffix}", site_packages)
    python = str(root / "bin" / "python")
    code = "import sys; print('llamafactory_plugin._boot' in sys.modules)"
    loaded = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    if loaded != str(with_start_file):
        raise RuntimeError(f"{python}: hook loaded is {loaded}, expected {with_start_file}")
    return python


def measure(arms: list[Arm], rounds: int) -> list[dict[str, float | str]]:
    """Start every arm once per round, so that other load on the machine falls on all of them alike."""
    samples: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in arms}
    for number in range(rounds):
        # The order changes each round: whoever starts after the slowest must not always be the same.
        for arm in arms[number % len(arms) :] + arms[: number % len(arms)]:
            samples[arm.name].append(arm.start())
    results = []
    for name, pairs in samples.items():
        wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
        results.append({"arm": name, "starts": rounds, "wall_ms": round(wall, 3), "cpu_ms": round(cpu, 3)})
    return results


def run(rounds: int) -> dict[str, object]:
    """Make the environments, measure, and compare with the goal."""
    with tempfile.TemporaryDirectory() as folder:
        hooked = make_environment(Path(folder) / "hook", with_start_file=True)
        plain = make_environment(Path(folder) / "plain", with_start_file=False)
        arms = [
            Arm("baseline", plain),
            Arm("hook", hooked),
            Arm("switched off", hooked, switch="0"),
            Arm("baseline again", plain),
        ]
        measure(arms, rounds=5)  # the first starts read from disk and write bytecode
        results = measure(arms, rounds)
    base = results[0]
    for result in results:
        for unit in ("wall_ms", "cpu_ms"):
            result[f"added_{unit}"] = round(float(result[unit]) - float(base[unit]), 3)
    value = results[1]["added_cpu_ms"]
    goal = {"name": "added CPU time per interpreter start, ms", "goal": f"< {GOAL_MS}"}
    return {
        "name": "startup",
        "environment": {"python": platform.python_version(), "machine": platform.platform(), "cpus": os.cpu_count()},
        "results": results,
        "goals": [{**goal, "value": value, "met": float(value) < GOAL_MS}],
    }


def main() -> int:
    """Print the table; exit status 1 when the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="150 starts per arm instead of 2000")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures to this file")
    arguments = parser.parse_args()
    report = run(rounds=150 if arguments.quick else 2000)
    for row in report["results"]:
        print(
            "{arm:<14} wall {wall_ms:7.3f} ms ({added_wall_ms:+.3f})   CPU {cpu_ms:7.3f} ms ({added_cpu_ms:+.3f})".format(
                **row
            )
        )
    for goal in report["goals"]:
        print("{name}: {value} (goal {goal}): {verdict}".format(verdict="met" if goal["met"] else "UNMET", **goal))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(goal["met"] for goal in report["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())

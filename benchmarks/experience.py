"""What the experience library costs: adding, drawing, retrieving, opening, injecting.

Baselines, measured in the same run: a plain Python list with exp and a running sum (drawing), and a JSON file that is
written whole and atomically at every commit (adding, opening), as the Rust original of the mission guide does.

Groups are of 8 rollouts of 1 KB, each of a prompt of its own, one to seven of which are stored; words follow Zipf's
law. Draws are medians and retrieval is a 95th percentile, of wall-clock time. "Added durably" is one group per commit,
which outlives a killed process; the arm "full" outlives a power cut.

    python benchmarks/experience.py [--quick] [--json PATH]
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import math
import os
import platform
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from trl_grpo_ext.experience import (  # noqa: E402
    Episode,
    ExperienceConfig,
    ExperienceLibrary,
    Lesson,
    RolloutGroup,
    lessons_text,
)

DATA = ROOT.parent / "shared" / "data"
WORDS = 50_000
GROUP = 8
CONFIG = ExperienceConfig(max_library_size=1_000_000)
GOALS = {
    "durable add at 100,000 records, groups/s": (300, "add"),
    "draw at 1,000,000 records, us": (50, "draw"),
    "8 draws without replacement at 1,000,000 records, ms": (0.5, "draw8"),
    "retrieval at 100,000 records, p95, ms": (50, "retrieve small"),
    "retrieval at 1,000,000 records, p95, ms": (250, "retrieve large"),
    "open 1,000,000 records, s": (2, "open"),
    "50 lessons into a prompt, ms": (1, "inject"),
}


class Texts:
    """Made-up texts: Zipf-distributed words, from a fixed seed."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._weights = list(itertools.accumulate(1 / rank for rank in range(1, WORDS + 1)))

    def text(self, words: int) -> str:
        """Return that many words."""
        ranks = self._random.choices(range(WORDS), cum_weights=self._weights, k=words)
        return " ".join(f"w{rank:x}" for rank in ranks)

    def group(self) -> RolloutGroup:
        """Return a group of which one to seven rollouts beat the mean."""
        good = self._random.randint(1, GROUP - 1)
        start = self.text(20)
        responses = [f"{start} {self._random.random()} " + "because it follows " * 40 for _ in range(GROUP)]
        rewards = [float(place < good) for place in range(GROUP)]
        return RolloutGroup(self.text(40), responses, rewards, {"domain": f"d{self._random.randrange(10)}"})


def fill(library: ExperienceLibrary, texts: Texts, size: int) -> None:
    """Add groups, many per commit, until the library holds `size` episodes."""
    while library.library_size() < size:
        library.add_rollout_groups([texts.group() for _ in range(min(500, 1 + (size - library.library_size()) // 8))])


def seconds(function: Callable[[], Any], rounds: int) -> list[float]:
    """Return the wall-clock seconds of each of `rounds` calls."""
    found = []
    for _ in range(rounds):
        before = time.perf_counter()
        function()
        found.append(time.perf_counter() - before)
    return found


def p95(times: list[float]) -> float:
    """Return the 95th percentile."""
    return sorted(times)[math.ceil(0.95 * len(times)) - 1]


def adding(path: Path, texts: Texts, durability: str, count: int) -> dict[str, Any]:
    """Add one group per commit."""
    groups = iter([texts.group() for _ in range(count)])
    with ExperienceLibrary(path, durability=durability) as library:
        size = library.library_size()
        before, cpu = time.perf_counter(), time.process_time()
        for group in groups:
            library.add_rollout_groups([group])
        wall, cpu = time.perf_counter() - before, time.process_time() - cpu
    rates = {"groups_per_s": round(count / wall, 1), "groups_per_cpu_s": round(count / cpu, 1)}
    return {"arm": f"add, durability {durability}", "records": size, "groups": count, **rates}


def adding_json(folder: Path, library: ExperienceLibrary, texts: Texts, count: int) -> dict[str, Any]:
    """The baseline: keep a list, write all of it at every commit."""
    path = folder / "baseline.json"
    library.export_file(path, "episodes")
    rows = json.loads(path.read_text())

    def commit() -> None:
        for episode in texts.group().episodes(0.0):
            rows.append({"prompt": episode.prompt, "response": episode.response, "advantage": episode.advantage})
        path.with_suffix(".new").write_text(json.dumps(rows))
        os.replace(path.with_suffix(".new"), path)

    times = seconds(commit, count)
    return {"arm": "add, JSON file", "records": len(rows), "groups_per_s": round(count / sum(times), 3)}


def drawing(library: ExperienceLibrary, rounds: int) -> list[dict[str, Any]]:
    """Draw from the library and from a list of advantages."""
    size = library.library_size()
    library.sample_experience()
    one = statistics.median(seconds(library.sample_experience, rounds))
    eight = statistics.median(seconds(lambda: library.sample_multiple(8), rounds))
    other = statistics.median(seconds(lambda: library.sample_multiple(8, temperature=0.5), 3))
    advantages = [item.advantage for item in library if isinstance(item, Episode)]

    def plain() -> int:
        sums = list(itertools.accumulate(map(math.exp, advantages)))
        return bisect.bisect(sums, random.random() * sums[-1])

    baseline = statistics.median(seconds(plain, 5))
    return [
        {"arm": "draw", "records": size, "draw_us": round(one * 1e6, 1), "draw_8_ms": round(eight * 1e3, 3)},
        {"arm": "draw 8 at another temperature", "records": size, "draw_8_ms": round(other * 1e3, 1)},
        {"arm": "draw, list with exp and running sum", "records": size, "draw_us": round(baseline * 1e6, 1)},
    ]


def retrieving(library: ExperienceLibrary, texts: Texts, queries: int) -> list[dict[str, Any]]:
    """Retrieve for prompts that the library has not seen, without and with a metadata filter."""
    size, rows = library.library_size(), []
    for name, where in (("retrieve", None), ("retrieve within a domain", {"domain": "d3"})):
        prompts = iter([texts.text(40) for _ in range(queries)])
        times = seconds(
            lambda prompts=prompts, where=where: library.retrieve_episodes(next(prompts), where=where), queries
        )
        found = {"median_ms": round(statistics.median(times) * 1e3, 2), "p95_ms": round(p95(times) * 1e3, 2)}
        rows.append({"arm": name, "records": size, "queries": queries, **found})
    return rows


def opening(path: Path) -> dict[str, Any]:
    """Open a file; the first draw, which builds the tree, apart."""

    def open_and_close() -> None:
        ExperienceLibrary(path).close()

    opened = statistics.median(seconds(open_and_close, 3))
    with ExperienceLibrary(path) as library:
        first = seconds(library.sample_experience, 1)[0]
        size = library.library_size()
    megabytes = round(path.stat().st_size / 1e6, 1)
    return {
        "arm": "open",
        "records": size,
        "open_s": round(opened, 4),
        "open_and_first_draw_s": round(opened + first, 3),
        "file_mb": megabytes,
    }


def opening_json(folder: Path) -> dict[str, Any]:
    """The baseline: read the JSON file that `adding_json` left."""
    path = folder / "baseline.json"
    rows: list[Any] = []
    taken = seconds(lambda: rows.extend(json.loads(path.read_text())), 1)[0]
    return {"arm": "open, JSON file", "records": len(rows), "open_s": round(taken, 3)}


def injecting(rounds: int) -> list[dict[str, Any]]:
    """Choose 50 lessons under a budget that they fit, and put them before a prompt; the same without any."""
    rows = []
    for count in (50, 0):
        library = ExperienceLibrary()
        library.add(
            *(Lesson(f"Case {number}: when x is {number}, convert first and check.") for number in range(count))
        )

        def words(text: str) -> int:
            return len(text.split())

        def inject(library: ExperienceLibrary = library) -> str:
            chosen = library.retrieve_lessons("prompt", token_budget=4096, count_tokens=words)
            return lessons_text([item.record for item in chosen]) + "prompt"

        times = seconds(inject, rounds)
        rows.append({"arm": "inject", "lessons": count, "ms": round(statistics.median(times) * 1e3, 4)})
    return rows


def real_prompts(rounds: int) -> list[dict[str, Any]]:
    """Retrieval over GSM8K's questions, where the data are: real words, not made-up ones."""
    path = DATA / "gsm8k" / "train.jsonl"
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    with ExperienceLibrary() as library:
        library.add(*(Episode(row["question"], row["answer"], 1.0) for row in rows[rounds:]))
        queries = iter([row["question"] for row in rows[:rounds]])
        times = seconds(lambda: library.retrieve_episodes(next(queries)), rounds)
        size = library.library_size()
    found = {"median_ms": round(statistics.median(times) * 1e3, 2), "p95_ms": round(p95(times) * 1e3, 2)}
    return [{"arm": "retrieve, GSM8K", "records": size, "queries": rounds, **found}]


def measure(folder: Path, quick: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the rows and the figures that the goals are about. Quick: a tenth of the sizes."""
    scale, texts, path = (10 if quick else 1), Texts(), folder / "experiences.db"
    with ExperienceLibrary(path, CONFIG) as library:
        fill(library, texts, 100_000 // scale)
        small = retrieving(library, texts, 60 if quick else 300)
        baseline = adding_json(folder, library, texts, 3)
    added = [adding(path, texts, durability, 300 if quick else 1000) for durability in ("normal", "full")]
    with ExperienceLibrary(path) as library:
        fill(library, texts, 1_000_000 // scale)
        large = retrieving(library, texts, 60 if quick else 300)
        drawn = drawing(library, 500 if quick else 2000)
    opened, injected = opening(path), injecting(500)
    rows = [*added, baseline, *drawn, *small, *large, *real_prompts(100), opened, opening_json(folder), *injected]
    figures = {
        "add": added[0]["groups_per_s"],
        "draw": drawn[0]["draw_us"],
        "draw8": drawn[0]["draw_8_ms"],
        "retrieve small": small[0]["p95_ms"],
        "retrieve large": large[0]["p95_ms"],
        "open": opened["open_and_first_draw_s"],
        "inject": injected[0]["ms"],
    }
    return rows, figures


def judge(figures: dict[str, float], quick: bool) -> list[dict[str, Any]]:
    """Compare with the goals."""
    goals = []
    for name, (limit, key) in GOALS.items():
        met = figures[key] >= limit if key == "add" else figures[key] <= limit
        shown = f"{name} (quick: at a tenth of the records)" if quick and key != "inject" else name
        goals.append(
            {"name": shown, "goal": f"{'>=' if key == 'add' else '<='} {limit}", "value": figures[key], "met": met}
        )
    return goals


def run(quick: bool) -> dict[str, Any]:
    """Measure everything in a temporary folder."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows, figures = measure(Path(folder), quick)
    environment = {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "load_before_and_after": [round(load, 2), round(os.getloadavg()[0], 2)],
    }
    return {"name": "experience", "environment": environment, "results": rows, "goals": judge(figures, quick)}


def main() -> int:
    """Print the table; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the records")
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

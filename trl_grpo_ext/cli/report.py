"""`grpo-ext report RUN_DIR`: one HTML file about a run, to be opened offline."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from trl_grpo_ext.experience import Episode, ExperienceError, ExperienceLibrary
from trl_grpo_ext.report import write_pictures, write_report

__all__ = ["experience_tables", "main", "parser", "saved_library"]

SHOWN, CHARACTERS = 100, 300
LIBRARY = "experiences.db"
Tables = dict[str, tuple[list[str], list[list[Any]]]]


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    root = argparse.ArgumentParser(prog="grpo-ext report", description="Write one HTML file about a training run.")
    root.add_argument("run", help="its output folder, with trainer_state.json")
    root.add_argument("--output", metavar="FILE", help="report.html in the folder by default")
    root.add_argument("--control", metavar="RUN_DIR", help="a control run, drawn dotted into the same curves")
    root.add_argument(
        "--experiences",
        metavar="LIBRARY",
        help="its experience library: what was learned and used; that of the last checkpoint by default",
    )
    root.add_argument("--pictures", action="store_true", help="write the curves as PNG files into the folder too")
    return root


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0: done, 1: refused, with the reason on the error output."""
    given = parser().parse_args(list(arguments))
    try:
        library = given.experiences or saved_library(Path(given.run))
        tables = experience_tables(library) if library else None
        pictures = write_pictures(given.run, given.control) if given.pictures else []
        path = write_report(given.run, given.output, given.control, tables)
    except (OSError, ValueError, ImportError, ExperienceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB" + (f", {len(pictures)} PNG files" if pictures else ""))
    return 0


def saved_library(run: Path) -> Path | None:
    """Return the experience library in the last checkpoint of a run; None without one."""
    found = [path for path in run.glob(f"checkpoint-*/{LIBRARY}") if path.parent.name.rsplit("-", 1)[1].isdigit()]
    return max(found, key=lambda path: int(path.parent.name.rsplit("-", 1)[1]), default=None)


def experience_tables(library: str | os.PathLike[str]) -> Tables:
    """Return what a library has learned: the records used most, with their gain, and the last versions.

    Raises:
        ExperienceError: it can't be opened.
    """
    with ExperienceLibrary(library, create=False) as opened:
        found = sorted(opened.records(), key=lambda item: (-item.uses, -item.gain))[:SHOWN]
        records = [[_kind(item.record), _text(item.record), item.uses, _mean_gain(item)] for item in found]
        versions = [
            [row.version, _time(row.created), row.added, row.retired, row.changed, row.cause]
            for row in opened.history(SHOWN)
        ]
    return {
        "Experiences learned and used": (["kind", "text", "uses", "mean gain"], records),
        "Versions of the experience library": (["version", "time", "added", "retired", "changed", "cause"], versions),
    }


def _kind(record: Any) -> str:
    return "episode" if isinstance(record, Episode) else "lesson"


def _text(record: Any) -> str:
    text = f"{record.prompt} -> {record.response}" if isinstance(record, Episode) else str(record.text)
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}…"


def _mean_gain(item: Any) -> str:
    """By how much rewards with the record were above the baseline of their group, on average over its uses."""
    return f"{item.gain / item.uses:+.3f}" if item.uses else ""


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")

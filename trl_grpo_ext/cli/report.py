"""`grpo-ext report RUN_DIR`: one HTML file about a run, to be opened offline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from trl_grpo_ext.report import write_report


def _parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="grpo-ext report", description="Write one HTML file about a training run.")
    root.add_argument("run", help="its output folder, with trainer_state.json")
    root.add_argument("--output", metavar="FILE", help="report.html in the folder by default")
    root.add_argument("--control", metavar="RUN_DIR", help="a control run, drawn dotted into the same curves")
    return root


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0: done, 1: refused, with the reason on the error output."""
    given = _parser().parse_args(list(arguments))
    try:
        path = write_report(given.run, given.output, given.control)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0

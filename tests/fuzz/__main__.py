"""`python -m tests.fuzz --seconds 60`: every target for a fixed time, with new seeds; `make fuzz` runs it.

It prints executions and findings per target and ends with 1 where there is a finding. `--seed` repeats a run's draws.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections.abc import Callable

from tests.fuzz import deltas
from tests.fuzz.catalogue import all_targets
from tests.fuzz.target import Target

# Draws between two looks at the clock.
ROUND = 25


def place(error: BaseException) -> str:
    """What was raised, and the innermost line of this repository that it came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {where}"


def fuzz(target: Target, seconds: float, numbers: Callable[[], int]) -> tuple[int, dict[str, str]]:
    """Run one target; return executions and findings, place -> what hypothesis says of the smallest value."""
    tried, found, end = 0, {}, time.monotonic() + seconds
    while time.monotonic() < end:
        number = numbers()
        try:
            tried += target.run(ROUND, number)
        except Exception as error:
            notes = "\n".join(getattr(error, "__notes__", ()))
            found.setdefault(place(error), f"seed {number}: {str(error)[:300]}\n{notes[:1500]}")
            tried += ROUND
    return tried, found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=None, help="a random one by default, which is printed")
    parser.add_argument("--only", default="", help="targets whose name contains this")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    draws = random.Random(seed)
    print(f"seed {seed}, {options.seconds:g} s per target", flush=True)
    total = 0
    for target in all_targets():
        if options.only in target.name:
            tried, found = fuzz(target, options.seconds, lambda: draws.randrange(2**32))
            total += len(found)
            print(f"{target.name}: {tried} executions, {len(found)} findings", flush=True)
            for where, text in found.items():
                print(f"  {where}\n    {text}".replace("\n", "\n    "), flush=True)
    deltas.forget()
    print(f"{total} findings")
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Every fuzz target of this environment."""

from __future__ import annotations

import importlib.util

from tests.fuzz import deltas, libraries, replies, run_files
from tests.fuzz.target import Target


def all_targets() -> list[Target]:
    """The targets; those that need LLaMA-Factory only where it is installed."""
    found = [*replies.targets(), *libraries.targets(), *deltas.targets(), *run_files.targets()]
    if importlib.util.find_spec("llamafactory") is None:
        return found
    from tests.fuzz import arguments, rows

    return [*found, *arguments.targets(), *rows.targets()]

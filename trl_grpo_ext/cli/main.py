"""`grpo-ext <command>`: the commands are found by the entry-point group `trl_grpo_ext.commands`.

A command is a function that takes its arguments and returns the exit status. Entry points keep this package from
importing the plugin, whose `check` needs LLaMA-Factory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

GROUP = "trl_grpo_ext.commands"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; without a known one, print the list. Returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, EntryPoint] = {command.name: command for command in entry_points(group=GROUP)}
    if not given or given[0] not in commands:
        print(f"usage: grpo-ext {{{','.join(sorted(commands))}}} ...", file=sys.stderr)
        return 2
    return int(commands[given[0]].load()(given[1:]) or 0)

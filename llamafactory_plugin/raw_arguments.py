"""What the user wrote, before LLaMA-Factory parses it: which keys were set, and with which names."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llamafactory_plugin.arguments import is_own_name
from llamafactory_plugin.errors import UsageError, nearest


def known_names(argument_classes: Iterable[type]) -> frozenset[str]:
    """Every key that the argument classes take."""
    return frozenset(item.name for cls in argument_classes for item in dataclasses.fields(cls) if item.init)


def explicit_arguments(args: Mapping[str, Any] | list[str], known: frozenset[str]) -> dict[str, Any]:
    """The keys that were set and their raw values, from a YAML mapping or from command-line flags.

    Flags are normalised as argparse reads them: `--grpo-beta 0.1`, `--grpo_beta=0.1` and the unambiguous
    abbreviation `--grpo_be 0.1` are all `grpo_beta`. A flag without a value is True.
    """
    if isinstance(args, Mapping):
        return dict(args)
    explicit: dict[str, Any] = {}
    name = ""
    for token in args:
        if token.startswith("--"):
            flag, separator, value = token[2:].partition("=")
            name = _full_name(flag.replace("-", "_"), known)
            explicit[name] = value if separator else True
        elif name:
            explicit[name] = token if explicit[name] is True else f"{explicit[name]} {token}"
    return explicit


def _full_name(flag: str, known: frozenset[str]) -> str:
    matches = [name for name in known if name.startswith(flag)]
    return matches[0] if flag not in known and len(matches) == 1 else flag


def refuse_unknown_names(explicit: Mapping[str, Any], known: frozenset[str]) -> None:
    """Refuse a key that no argument class takes, with the nearest right name.

    Raises:
        UsageError: for the first unknown key, unless LLaMA-Factory's ALLOW_EXTRA_ARGS is on.
    """
    if os.environ.get("ALLOW_EXTRA_ARGS", "0").lower() in ("1", "true", "y"):
        return
    for name in explicit:
        if name not in known and name.removeprefix("no_") not in known and name not in ("h", "help"):
            raise UsageError(f"{name!r} is not an argument of `llamafactory-cli train`{nearest(name, known)}")


def refuse_own_names(explicit: Mapping[str, Any], stage: str) -> None:
    """Refuse the plugin's keys in a stage that would ignore them.

    Raises:
        UsageError: naming the keys.
    """
    own = sorted(name for name in explicit if is_own_name(name))
    if own:
        raise UsageError(
            f"{', '.join(own)}: only stage grpo reads this; stage is {stage}: remove it or set stage: grpo"
        )


def config_folder(args: Mapping[str, Any] | list[str]) -> Path | None:
    """The folder of the YAML file on the command line, or None when the run was not started from one."""
    started_from_yaml = isinstance(args, Mapping) and len(sys.argv) > 1 and sys.argv[1].endswith((".yaml", ".yml"))
    return Path(sys.argv[1]).absolute().parent if started_from_yaml else None

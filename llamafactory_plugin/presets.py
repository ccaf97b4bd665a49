"""`grpo_preset`: which settings of a paper a run takes, and whether it needs a reference model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trl_grpo_ext.presets import PRESETS

# Who sets the first has also decided about the second, which a preset then leaves alone: the upper clip range belongs to
# the lower one, and the scale of the advantages has two names.
FREED_BY = {"epsilon": "epsilon_high", "scale_rewards": "advantage_scale", "advantage_scale": "scale_rewards"}


def preset_of(arguments: Any) -> Mapping[str, Any]:
    """All settings of the run's preset, under the names of the config's fields; empty without one."""
    return PRESETS[arguments.grpo_preset] if arguments.grpo_preset else {}


def preset_values(arguments: Any, given: Iterable[str]) -> dict[str, Any]:
    """The settings of the run's preset that nothing of what is `given` (names of the config's fields) replaces."""
    decided = set(given)
    decided |= {freed for name, freed in FREED_BY.items() if name in decided}
    return {name: value for name, value in preset_of(arguments).items() if name not in decided}


def needs_reference(arguments: Any) -> bool:
    """Whether the run needs a reference model: for a KL penalty, or to clip against it at `grpo_beta: 0` too."""
    anchor = arguments.grpo_config.get("clip_anchor", preset_of(arguments).get("clip_anchor", "old"))
    return arguments.grpo_beta > 0 or anchor != "old"

"""YAML files of `grpo-ext train-free`, and what stands behind its `--set`."""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.fuzz.target import Target
from tests.fuzz.values import TEXTS, damage_bytes, damage_tree

EXAMPLE = Path(__file__).parents[2] / "examples" / "training_free" / "gsm8k.yaml"
NAMES = ("config.num_generations", "budget.max_calls", "policy", "gate.alpha", "reward", "config..x", "", "output_dir")


@cache
def example() -> Any:
    return yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))


def _file(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        return damage_bytes(draw, EXAMPLE.read_bytes())
    tree = damage_tree(draw, copy.deepcopy(example()))
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace")


def _sets(draw: st.DrawFn) -> list[str]:
    return draw(st.lists(st.tuples(st.sampled_from(NAMES), TEXTS).map("=".join), max_size=2))


def run_file(given: tuple[bytes, list[str]]) -> None:
    """Read a file of a run; nothing is loaded and nothing is written."""
    from trl_grpo_ext.training_free.settings_file import read_run_settings

    data, overrides = given
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_bytes(data)
        assert read_run_settings(path, overrides).reward
        assert [item.name for item in Path(folder).iterdir()] == ["run.yaml"]


def targets() -> list[Target]:
    """The targets of this file."""
    given = st.tuples(st.composite(_file)(), st.composite(_sets)())
    return [Target("train-free file", given, run_file, (ValueError,))]

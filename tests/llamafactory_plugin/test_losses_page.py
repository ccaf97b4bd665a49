"""`docs/losses.md`: its table is the fields' own, its presets are all, its YAML passes and its code trains."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.prepared import prepare
from tests.llamafactory_plugin.test_loss_settings import OPTIONS
from tests.llamafactory_plugin.test_training import vowels
from trl_grpo_ext import ExtendedGRPOConfig
from trl_grpo_ext.presets import PRESETS

__all__ = ["vowels"]

PAGE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def table(title: str) -> list[list[str]]:
    """The rows of the first table below a title, without its head."""
    part = PAGE.partition(f"## {title}")[2].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("| ") or line.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[2:]]


def test_the_options_are_the_fields() -> None:
    fields = {item.name: item for item in dataclasses.fields(ExtendedGRPOConfig)}
    rows = {name.strip("`"): (default, text) for name, default, text in table("Options")}
    assert set(rows) == {*OPTIONS, "eval_temperature"}
    assert rows == {name: (str(fields[name].default), fields[name].metadata["help"]) for name in rows}


def test_every_preset_is_there() -> None:
    assert [row[0].strip("`") for row in table("Presets")] == list(PRESETS)


def test_the_yaml_passes(workspace: Workspace) -> None:
    (text,) = blocks("yaml")
    config = prepare(workspace.arguments(**yaml.safe_load(text))).config
    assert (config.epsilon, config.epsilon_high, config.dynamic_sampling_rounds) == (0.2, 0.3, 2)
    assert config.mask_truncated_completions is True


def test_the_loss_trains(workspace: Workspace, vowels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.folder)
    loss, callbacks = blocks("python")
    (workspace.folder / "losses.py").write_text(loss, encoding="utf-8")
    workspace.run(**vowels, grpo_config={"loss_fn": "losses.py:reinforce"}, max_steps=1)
    assert any("reinforce/tokens" in entry for entry in workspace.log())
    made: dict[str, Any] = {}
    exec(callbacks, made)
    assert [type(callback).__name__ for callback in made["callbacks"]] == [
        "ClipScheduleCallback",
        "AdaptiveKLCallback",
    ]

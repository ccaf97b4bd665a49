"""YAML, JSON and commands of README, quickstart_llamafactory, rewards_llamafactory, board, bitdelta: they pass, or train."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llamafactory", reason="needs LLaMA-Factory (line A)")

import yaml
from llamafactory.data.template import TEMPLATES

from llamafactory_plugin.evaluation import load_metrics
from tests.docs.pages import REPOSITORY, blocks, commands
from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace, model, quiet_environment, workspace
from tests.llamafactory_plugin.prepared import Prepared, prepare

__all__ = ["model", "quiet_environment", "workspace"]

pytestmark = pytest.mark.line_a
SUMS = [{"question": f"{n} + 1?", "answer": f"It is.\n#### {n + 1}"} for n in range(40)]
COLUMNS = {"prompt": "question", "response": "answer"}
SMALL = {"use_cpu": True, "gradient_accumulation_steps": 1, "grpo_max_completion_length": 8, "max_steps": 2}


@pytest.fixture
def place(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A working directory with the data that the pages name."""
    monkeypatch.chdir(workspace.folder)
    monkeypatch.setitem(TEMPLATES, "qwen3", copy.deepcopy(TEMPLATES["qwen3"]))
    for name in ("mine", "gsm8k", "unlabelled", "canaries"):
        tiny.write_dataset(workspace.data, name, SUMS, columns=COLUMNS)
    return workspace


def prepared(place: Workspace, text: str, **others: Any) -> Prepared:
    """A page's YAML, beside the keys that every run has to have."""
    return prepare(place.arguments(**yaml.safe_load(text) | others))


def whole(place: Workspace, text: str, **others: Any) -> dict[str, Any]:
    """A page's whole run, with the tiny model, its data folder and small sizes."""
    own = {"model_name_or_path": place.defaults["model_name_or_path"], "dataset_dir": str(place.data)}
    return yaml.safe_load(text) | own | SMALL | others


def run_command(command: str) -> int:
    """`grpo-ext NAME ...` in this process, by what pyproject.toml says of NAME."""
    name, *arguments = shlex.split(command.removeprefix("grpo-ext "))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["entry-points"]["trl_grpo_ext.commands"][name].partition(":")
    return int(getattr(import_module(module), function)(arguments))


def test_readme(place: Workspace) -> None:
    run, experience, delta, metrics = blocks("README.md", "yaml")
    ready = prepare(whole(place, run))
    assert (ready.config.num_generations, ready.config.learning_rate) == (8, 1e-5)
    assert [reward.__name__ for reward in ready.rewards] == ["gsm8k_number"]
    found = prepared(place, experience, output_dir="saves/grpo").run.finetuning_args
    assert (found.experience_inject, found.experience_rescue) == ("both", "off_policy")
    assert prepared(place, delta, finetuning_type="full").run.finetuning_args.bitdelta is True
    measured = prepared(place, metrics, dataset="gsm8k", val_size=2)
    assert [metric.__name__ for metric in load_metrics(measured.run)] == ["strict_match", "flexible_match"]


def test_rewards_llamafactory(place: Workspace) -> None:
    functions, composition, reward_model, guard = blocks("docs/rewards_llamafactory.md", "yaml")
    function = "def {}(completions, **kwargs):\n    return [1.0] * len(completions)\n\n\n"
    Path("rewards.py").write_text(function.format("short") + function.format("form"), encoding="utf-8")
    ready = prepared(place, functions)
    assert [reward.__name__ for reward in ready.rewards] == ["short", "exact_match"]
    # With the part that is a reward model, which tests/llamafactory_plugin/test_reward_model.py trains.
    mixed = yaml.safe_load(composition)
    assert mixed["grpo_reward_composition"]["rewards"].pop() == "reward_model"
    assert [reward.__name__ for reward in prepared(place, yaml.safe_dump(mixed), dataset="mine").rewards] == ["mixed"]
    assert yaml.safe_load(reward_model)["reward_model_type"] == "full"
    ready = prepared(place, guard)
    assert [reward.__name__ for reward in ready.rewards] == ["guarded_label_free"]


def test_board(place: Workspace) -> None:
    (text,) = blocks("docs/board.md", "json")
    config = prepare(
        place.arguments(**json.loads(text), **{"dataset": "mine", "per_device_train_batch_size": 8})
    ).config
    assert (config.num_generations, config.max_completion_length, config.logging_steps) == (8, 256, 1)


def test_bitdelta(place: Workspace) -> None:
    from llamafactory.hparams import FinetuningArguments

    (text,) = blocks("docs/bitdelta.md", "yaml")
    assert yaml.safe_load(text).keys() <= {*FinetuningArguments.__dataclass_fields__, "stage", "finetuning_type"}


def test_migration_names_keys_that_exist() -> None:
    from llamafactory.hparams import FinetuningArguments

    page = (REPOSITORY / "docs" / "migration.md").read_text(encoding="utf-8")
    keys = set(re.findall(r"\b((?:grpo|reward)_[a-z_]+[a-z])\b", page)) - {"reward_func", "reward_model"}
    assert len(keys) > 8 and keys <= FinetuningArguments.__dataclass_fields__.keys()


def test_quickstart_llamafactory(place: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """check, train, evaluate, report: with the page's file and in its order, on a tiny model."""
    pytest.importorskip("plotly", reason="needs plotly (the extra report)")
    from llamafactory.train.tuner import run_exp

    page = "docs/quickstart_llamafactory.md"
    (entry,), (run,) = blocks(page, "json"), blocks(page, "yaml")
    assert json.loads(entry)["mine"] == json.loads((place.data / "dataset_info.json").read_text())["mine"]
    Path("grpo.yaml").write_text(yaml.safe_dump(whole(place, run, plot_loss=False, save_strategy="no")), "utf-8")
    check, train = commands(page)[-2:]
    assert shlex.split(check)[:2] == shlex.split("grpo-ext check") and run_command(check) == 0
    assert train.startswith("llamafactory-cli train ")
    monkeypatch.setattr(sys, "argv", shlex.split(train)[1:])
    run_exp()
    assert Path("saves/grpo/report.html").exists() and Path("saves/grpo/completions.jsonl").exists()
    evaluate, report = commands(page)[1:3]
    assert [evaluate, report] == [
        command for command in commands(page) if re.match("grpo-ext (evaluate|report)", command)
    ]
    # README has the same two, with the control run in the report.
    ours = [command for command in commands("README.md") if re.match("grpo-ext (evaluate|report) quick", command)]
    assert [evaluate, f"{report} --control quickstart/control"] == ours
    shutil.copytree("saves/grpo", "quickstart/grpo")
    shutil.copytree("saves/grpo", "quickstart/control")
    shutil.copytree(place.defaults["model_name_or_path"], "quickstart/start")
    Path("quickstart/data").mkdir()
    rows = [{"instruction": f"{n}+1=", "output": str(n + 1)} for n in range(4)]
    Path("quickstart/data/addition_heldout.json").write_text(json.dumps(rows), encoding="utf-8")
    assert [run_command(command) for command in (evaluate, *ours[1:], report)] == [0, 0, 0]
    assert "exact_match" in capsys.readouterr().out

"""`docs/experience.md`: its table is the dataclass's, its YAML passes, its code and command run, its example trains."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamafactory_plugin.experience_arguments import ExperienceArguments
from tests.llamafactory_plugin import tiny
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.prepared import prepare
from tests.llamafactory_plugin.test_examples import small, train
from trl_grpo_ext.cli.experiences import main
from trl_grpo_ext.experience import ExperienceLibrary

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "experience.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_keys_are_the_fields() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")
    ]
    fields = dataclasses.fields(ExperienceArguments)
    assert rows == [[f"`{item.name}`", str(item.default), item.metadata["help"]] for item in fields]


def test_the_yaml_passes(workspace: Workspace) -> None:
    (workspace.folder / "saves").mkdir()
    (text,) = blocks("yaml")
    given = yaml.safe_load(text)
    given["experience_library"] = str(workspace.folder / given["experience_library"])
    assert prepare(workspace.arguments(**given)).run.finetuning_args.experience_rescue_anneal == 0.5


@pytest.fixture
def made(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's code makes, run from top to bottom in a folder of its own."""
    monkeypatch.chdir(workspace.folder)
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block, names)
    return names


def test_the_code_runs(workspace: Workspace, made: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    library, name = made["library"], workspace.defaults["model_name_or_path"]
    library.add_rollout_group([("Which word is last: a b?", text) for text in ("b", "a", "c", "d")], [1, 0, 0, 0])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    prompts = ["Which word is first: x y z?", "Which word is second: x y z?"]
    assert made["answers"](model, tokenizer, prompts) == ["b", "b"]
    (row,) = [json.loads(line) for line in (workspace.folder / "rows.jsonl").read_text("utf-8").splitlines()]
    assert row == made["rows"][0] and "convert first" in row["privileged_context"]
    library.close()


def test_the_command_runs(workspace: Workspace, made: dict[str, Any]) -> None:
    made["library"].close()
    Path("train.jsonl").write_text('{"question": "How far?"}\n', encoding="utf-8")
    command = next(line for line in PAGE.splitlines() if line.startswith("grpo-ext experiences distill"))
    assert main(shlex.split(command)[2:]) == 0
    assert json.loads(Path("rows.jsonl").read_text("utf-8"))["prompt"] == [{"role": "user", "content": "How far?"}]


def test_the_example_trains(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    example = REPOSITORY / "examples" / "llamafactory"
    monkeypatch.chdir(workspace.folder)
    rows = [{"question": f"What is {number} plus 1?", "answer": f"It is.\n#### {number + 1}"} for number in range(16)]
    tiny.write_dataset(workspace.data, "gsm8k", rows, columns={"prompt": "question", "response": "answer"})
    library = str(workspace.folder / "lessons.db")
    assert main(["import", library, str(example / "lessons.json")]) == 0
    train(
        small(workspace, "experience", template="qwen", experience_library=library, enable_thinking=None), monkeypatch
    )
    (lesson, *_) = json.loads((example / "lessons.json").read_text("utf-8")).values()
    assert all(lesson in row["injected_prompt"][0]["content"] for row in workspace.completions())
    with ExperienceLibrary(library) as found:
        assert found.stats().total_rollouts == 16

"""`docs/evaluation.md`, `docs/report.md`, `docs/troubleshooting.md`: their keys exist, their code and commands run."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from trl_grpo_ext.cli.evaluate_arguments import parser
from trl_grpo_ext.health import RULES

DOCS = Path(__file__).parents[2] / "docs"
EVALUATION, REPORT, TROUBLES = (
    (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("evaluation", "report", "troubleshooting")
)

README = (
    (DOCS.parent / "README.md").read_text(encoding="utf-8").split("\n## Seeing what a run does\n")[1].split("\n## ")[0]
)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def commands(page):
    text = "".join(blocks(page, "bash")).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("grpo-ext")]


def test_the_code_runs():
    for page in (EVALUATION, REPORT):
        names = {}
        for block in blocks(page, "python"):
            exec(block, names)
    assert len(names["callbacks"]) == 3


def test_the_commands_are_understood():
    """Their files are made up; tests/evaluation/test_command.py and tests/report run such commands over real ones."""
    from trl_grpo_ext.cli.report import parser as report_parser

    found = commands(EVALUATION)
    assert len(found) == 3 and all(words[:2] == ["grpo-ext", "evaluate"] for words in found)
    for words in found:
        assert parser().parse_args(words[2:]).target.startswith("saves/")
    (words,) = commands(REPORT)
    given = report_parser().parse_args(words[2:])
    assert given.control == "saves/shuffled" and given.pictures
    evaluated, reported = commands(README)
    assert parser().parse_args(evaluated[2:]).baseline == "saves/sft"
    assert report_parser().parse_args(reported[2:]).control == "saves/shuffled"


def test_every_rule_is_in_the_table():
    assert {rule.__name__ for rule in RULES} == set(re.findall(r"^\| `(\w+)` \|", REPORT, re.MULTILINE))


def keys_of_the_pages():
    return set(re.findall(r"\b(?:grpo|experience|reward)_[a-z_]+[a-z]\b", EVALUATION + REPORT + TROUBLES + README))


@pytest.mark.line_a
def test_the_keys_exist_and_the_table_is_the_dataclass_s():
    pytest.importorskip("llamafactory", reason="needs LLaMA-Factory (line A)")
    from llamafactory.hparams import FinetuningArguments

    from llamafactory_plugin.evaluation_arguments import EvaluationArguments

    known = {item.name for item in dataclasses.fields(FinetuningArguments)}
    others = {"reward_hacking", "reward_flat", "reward_share", "reward_seconds", "experience_tables"}
    assert keys_of_the_pages() - known <= others
    fields = {item.name: item for item in dataclasses.fields(EvaluationArguments)}
    rows = re.findall(r"^\| `(grpo_eval_\w+)` \| (\w+) \| (.*) \|$", EVALUATION, re.MULTILINE)
    assert [row[0] for row in rows] == ["grpo_eval_metrics", "grpo_eval_samples"]
    for name, default, text in rows:
        assert (default, text) == (str(fields[name].default), fields[name].metadata["help"])


@pytest.mark.line_a
def test_the_yaml_passes(tmp_path, tmp_path_factory):
    pytest.importorskip("llamafactory", reason="needs LLaMA-Factory (line A)")
    import yaml

    from tests.llamafactory_plugin import tiny
    from tests.llamafactory_plugin.conftest import Workspace
    from tests.llamafactory_plugin.prepared import prepare

    workspace = Workspace(tmp_path, tiny.build_model(tmp_path_factory.mktemp("model")))
    rows = [{"instruction": f"{number} + 1?", "output": str(number + 1)} for number in range(40)]
    tiny.write_dataset(workspace.data, "sums", rows)
    (text,) = blocks(EVALUATION, "yaml")
    config = prepare(workspace.arguments(dataset="sums", **yaml.safe_load(text))).config
    assert (config.metric_for_best_model, config.greater_is_better) == ("eval_strict_match/avg@8", True)

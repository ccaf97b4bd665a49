"""`docs/training_free.md`, `docs/serving.md`, README and examples: their keys are the code's, and what they show runs."""

import dataclasses
import json
import re
import shlex

import pytest
import yaml

pytest.importorskip("httpx")

from tests.training_free.http_server import Answer, completion, serving
from tests.training_free.tiny_models import REPOSITORY
from trl_grpo_ext.cli import infer, serve, train_free
from trl_grpo_ext.experience import ExperienceLibrary, Lesson
from trl_grpo_ext.training_free import Budget
from trl_grpo_ext.training_free.backends import OpenAIBackend
from trl_grpo_ext.training_free.model_settings import BACKENDS
from trl_grpo_ext.training_free.run_settings import SECTIONS

PAGE = (REPOSITORY / "docs" / "training_free.md").read_text(encoding="utf-8")
SERVING = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
EXAMPLE = REPOSITORY / "examples" / "training_free" / "gsm8k.yaml"
UPSTREAM = "http://127.0.0.1:8000/v1"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def cells(page, column=0):
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `")]
    return [re.findall(r"`([^`]+)`", row[column]) for row in rows]


def solves(body):
    """Adds two numbers, wrongly at times; a reflector that has nothing to say."""
    system, asked = body["messages"][0]["content"], body["messages"][-1]["content"]
    if system.startswith("You "):
        return Answer(body=completion("[]"))
    numbers = [int(number) for number in re.findall(r"\d+", asked)]
    return Answer(body=completion(f"It is {sum(numbers) + body['seed'] % 2}"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with data, the page's run, and rows of questions."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {n} plus 1?", "answer": f"It is.\n#### {n + 1}"} for n in range(40)]
    lines = "\n".join(map(json.dumps, rows))
    for name in ("train.jsonl", "questions.jsonl", "grade_school_math/data/train.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(lines)
    return tmp_path


@pytest.fixture
def endpoint():
    with serving(solves) as found:
        yield found


def run_commands(page, url):
    """Every train-free and infer line of a page; returns how many there were."""
    mains = {"train-free": train_free.main, "infer": infer.main}
    found = [shlex.split(line) for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    found = [words[1:] for words in found if words[:1] == ["grpo-ext"] and words[1] in mains]
    for words in found:
        assert mains[words[0]]([word.replace(UPSTREAM, url) for word in words[1:]]) == 0, words
    return len(found)


def test_the_commands_of_the_pages_run_in_their_order(folder, endpoint, capsys):
    run = yaml.safe_load(blocks(PAGE, "yaml")[0])
    run["policy"]["base_url"] = endpoint.url
    (folder / "run.yaml").write_text(yaml.safe_dump(run | {"config": run["config"] | {"num_generations": 2}}))
    assert run_commands(PAGE, endpoint.url) == 5
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 40
    report = json.loads((folder / "lessons" / "report.json").read_text())
    assert report["status"] == "finished" and 0 < report["steps"][0]["reward"] < 1
    assert run_commands(README, endpoint.url) == 2
    # What the page says of the folder.
    files = [name for row in cells(PAGE.partition("## Answers")[0]) for name in row if re.search(r"\.(\w+)$", name)]
    assert {"library.db", "experiences.json", "run.db", "report.md"} <= set(files)
    assert [name for name in files if not (folder / "lessons" / name).exists()] == []


def test_the_example_runs_with_small_sizes(folder, endpoint, capsys):
    small = ["policy.base_url=" + endpoint.url, "reflector.base_url=" + endpoint.url, "config.num_generations=2"]
    small += ["config.num_train_epochs=1", "dataset.path=train.jsonl", "gate.min_pairs=10"]
    assert train_free.main([str(EXAMPLE), *(part for item in small for part in ("--set", item))]) == 0
    report = json.loads((folder / "saves" / "gsm8k-lessons" / "report.json").read_text())
    assert report["status"] == "finished" and report["spent"]["cost"] > 0


def test_the_python_runs(folder, endpoint):
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    rows = [{"prompt": row["question"], "solution": row["answer"]} for row in rows]
    names = {"model": OpenAIBackend(endpoint.url, "m"), "rows": rows}
    (block,) = blocks(PAGE, "python")
    exec(block.replace("batch_size=20", "batch_size=20, num_generations=2"), names)
    assert names["learner"].report.status == "finished"


def test_the_tables_are_the_codes():
    sections = [row[0] for row in cells(PAGE)[: len(SECTIONS)]]
    assert sections == list(SECTIONS)
    (budget,) = [line for line in PAGE.splitlines() if line.startswith("| `budget`")]
    assert {item.name for item in dataclasses.fields(Budget)} <= set(re.findall(r"`(\w+)`", budget))
    keys = [line.split("|")[2] for line in PAGE.splitlines() if re.match(r"\| (a folder|an OpenAI|vLLM in)", line)]
    found = [re.findall(r"`(\w+)`", line) for line in keys]
    assert [set(row) for row in found] == [
        {item.name for item in dataclasses.fields(BACKENDS[name])} for name in ("transformers", "openai", "vllm")
    ]


def test_the_options_of_serve_are_the_commands():
    named = {name for row in cells(SERVING) for name in row if name.startswith("--")}
    options = {name for action in serve.parser()._actions for name in action.option_strings}
    assert named == options - {"-h", "--help"}


def test_the_client_of_the_page_is_answered_with_the_lessons(folder, capsys):
    pytest.importorskip("openai")
    pytest.importorskip("uvicorn")
    from tests.serving.proxies import proxy

    with ExperienceLibrary(folder / "library.db") as library:
        library.add(Lesson("add first"))
    seen = []

    def answer(body):
        seen.append(body["messages"])
        return Answer(body={"id": "c", "object": "chat.completion", "created": 0, "model": "policy"} | completion("4"))

    (block,) = blocks(SERVING, "python")
    with serving(answer) as upstream, proxy(upstream.url, "library.db", client_key=None, upstream_key=None) as url:
        exec(block.replace("http://127.0.0.1:8100", url), {})
    assert capsys.readouterr().out == "4\n" and "add first" in seen[0][0]["content"]
    assert "grpo-ext serve --upstream http://127.0.0.1:8000/v1 --library lessons/library.db" in SERVING
    for block in (*blocks(SERVING, "bash"), *blocks(README, "bash")):
        for line in [line for line in block.splitlines() if line.startswith("grpo-ext serve")]:
            assert serve.parser().parse_args(shlex.split(line)[2:]).upstream == UPSTREAM

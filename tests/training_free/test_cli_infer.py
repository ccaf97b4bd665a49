"""`grpo-ext infer` over real HTTP and with a real model: query, standard input, rows, and what is refused."""

import io
import json

import pytest

pytest.importorskip("httpx")

from tests.training_free.command_runs import write_run
from tests.training_free.http_server import Answer, completion, error, serving
from tests.training_free.tiny_models import make_model, make_tokenizer
from trl_grpo_ext.cli.infer import main
from trl_grpo_ext.experience import ExperienceLibrary, Lesson, lessons_text

LESSONS = [Lesson("add first"), Lesson("check the sign", metadata={"domain": "signs"})]


def heard(body):
    """Answers with what the model was shown."""
    system = [message["content"] for message in body["messages"] if message["role"] == "system"]
    text = f"<think>so</think>{'|'.join(system)}>{body['messages'][-1]['content']}"
    return Answer(500, error("no")) if "fail" in text else Answer(body=completion(text))


@pytest.fixture
def library(tmp_path):
    with ExperienceLibrary(tmp_path / "library.db") as made:
        made.add(*LESSONS)
    return tmp_path


@pytest.fixture
def endpoint():
    with serving(heard) as found:
        yield found


@pytest.fixture
def infer(library, endpoint, capsys):
    def run(*arguments, status=0, model=("--model", "m"), shown=("--library", str(library))):
        quick = ["--set", "policy.retry.attempts=1", "--set", "config.max_attempts=1"]
        assert main([*map(str, arguments), *model, "--base-url", endpoint.url, *shown, *quick]) == status
        return capsys.readouterr()

    return run


def test_a_query_is_answered_with_the_lessons(infer, endpoint):
    assert infer("2+2?").out == f"{lessons_text(LESSONS)}>2+2?\n"
    body = endpoint.requests[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.3, 2048)


def test_the_standard_input_is_the_query(infer, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("2+2?\nOr not?"))
    assert infer().out.endswith(">2+2?\nOr not?\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    assert "there is no question" in infer(status=1).err


def test_settings_and_lessons_by_flag(infer, endpoint, library):
    given = ["--set", "config.eval_temperature=0", "--set", "config.domain=signs", "--set", "config.seed=7"]
    assert infer("2+2?", *given).out == f"{lessons_text(LESSONS[1:])}>2+2?\n"
    assert endpoint.requests[0]["temperature"] == 0
    assert infer("2+2?", "--no-lessons", shown=()).out == ">2+2?\n"
    assert infer("2+2?", shown=("--library", str(library / "library.db"))).out.startswith("Lessons")


def test_rows_keep_their_columns(infer, tmp_path, monkeypatch):
    rows = [{"question": "a?", "id": 1}, {"question": [{"role": "user", "content": "b?"}], "id": 2}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = [json.loads(line) for line in infer("--input", tmp_path / "rows.jsonl").out.splitlines()]
    head = lessons_text(LESSONS)
    assert found == [rows[0] | {"response": f"{head}>a?"}, rows[1] | {"response": f"{head}>b?"}]
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps([{"q": "c?"}])))
    infer("--input", "-", "--column", "q", "--output", tmp_path / "out.jsonl")
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert row == {"q": "c?", "response": f"{head}>c?"}


def test_a_failed_call_is_an_error_of_its_row(infer, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([{"prompt": "fail"}, {"prompt": "b"}]))
    found = infer("--input", tmp_path / "rows.json", status=1)
    first, second = [json.loads(line) for line in found.out.splitlines()]
    assert "HTTP status 500" in first["error"] and "response" not in first and second["response"]
    assert "1 of 2 calls failed" in found.err
    assert "HTTP status 500" in infer("fail", status=1).err


def test_a_file_of_a_run_says_it_all(infer, endpoint, library, tmp_path, capsys):
    run = write_run(tmp_path, endpoint.url, output_dir=str(library))
    assert main(["2+2?", "--config", str(run), "--set", "config.eval_temperature=0.1"]) == 0
    assert capsys.readouterr().out == f"{lessons_text(LESSONS)}>2+2?\n"
    assert endpoint.requests[0]["model"] == "policy" and endpoint.requests[0]["temperature"] == 0.1


def test_a_library_is_not_changed_and_none_is_made(infer, library):
    before = (library / "library.db").read_bytes()
    infer("2+2?")
    assert (library / "library.db").read_bytes() == before
    (library / "library.db").unlink()
    assert "there is no library at" in infer("2+2?", status=1).err and not (library / "library.db").exists()


def test_a_real_model(library, capsys):
    tokenizer = make_tokenizer()
    folder = library / "model"
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    arguments = ["ab?", "--model", str(folder), "--no-lessons", "--set", "config.max_completion_length=8"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert main(arguments) == 0 and capsys.readouterr().out == first and first.strip()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["q", "--input", "rows.jsonl", "--model", "m", "--no-lessons"], "not both"),
        (["q", "--output", "o", "--model", "m", "--no-lessons"], "go with --input"),
        (["q", "--config", "run.yaml", "--model", "m"], "policy.model="),
        (["q", "--no-lessons"], "give --config, or --model"),
        (["q", "--model", "m"], "give --library"),
        (["q", "--model", "m", "--library", "l", "--no-lessons"], "exclude"),
    ],
)
def test_flags_that_do_not_fit(capsys, arguments, words):
    with pytest.raises(SystemExit) as status:
        main(arguments)
    assert status.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", '["a"]', '[{"other": 1}]', '{"prompt": 5}', '{"prompt": [{"role": "user"}]}'])
def test_rows_that_are_none(infer, endpoint, tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    assert infer("--input", tmp_path / "rows.jsonl", status=1).err.startswith("error: --input: ")
    assert endpoint.requests == []

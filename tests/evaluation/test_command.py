"""`grpo-ext evaluate` over files of samples and over real model folders."""

import json

import pytest

from tests.conformance.runs import build_model, tokenizer
from trl_grpo_ext.cli.evaluate import main
from trl_grpo_ext.evaluation import read_rows
from trl_grpo_ext.experience import ExperienceLibrary, Lesson


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = build_model(tmp_path_factory.mktemp("models") / "plain")
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def run(capsys, tmp_path):
    def command(*arguments):
        status = main([*map(str, arguments), "--json", str(tmp_path / "out.json")])
        captured = capsys.readouterr()
        figures = json.loads((tmp_path / "out.json").read_text()) if status == 0 else None
        return status, captured.out, captured.err, figures

    return command


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"question": text, "answer": "7"} for text in ("say ", "1 ", "7 ", "# ", "a 1", "y", "s")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def samples(path, right, steps=(None,)):
    """Ten problems, four samples each; those below `right` are right."""
    rows = [
        {
            "prompt": f"p{number}",
            "completion": "#### 1" if number < right else "2",
            "solution": "1",
            "rewards": {"r": 0.5},
        }
        | ({} if step is None else {"step": step})
        for step in steps
        for number in range(10)
        for _ in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_two_files_are_compared(run, tmp_path):
    one, two = samples(tmp_path / "one.jsonl", 9), samples(tmp_path / "two.jsonl", 2, steps=(3, 6))
    status, out, err, figures = run(one, "--baseline", two, "--scorer", "strict_match,gsm8k_number", "--k", "1,4")
    assert (status, err) == (0, "") and "samples of step 6" in out
    assert figures["targets"]["target"]["metrics"]["strict_match/pass@4"]["value"] == 0.9
    assert figures["targets"]["baseline"]["samples"] == 40
    difference = figures["differences"]["gsm8k_number/avg@4"]
    assert difference["value"] == pytest.approx(0.7) and difference["low"] > 0.2 and difference["better"] == 7
    assert "strict_match/maj@4" in out and "gsm8k_number/maj@4" not in out


def test_the_scores_of_the_file_are_taken_without_a_scorer(run, tmp_path):
    figures = run(samples(tmp_path / "one.jsonl", 9))[3]
    assert figures["targets"]["target"]["metrics"]["r/avg@4"]["value"] == 0.5


def test_two_by_two_of_files(run, tmp_path):
    paths = [samples(tmp_path / f"{right}.jsonl", right) for right in (1, 3, 4, 9)]
    _, out, _, figures = run(paths[0], "--two-by-two", *paths[1:], "--scorer", "strict_match")
    assert "| change by training with" in out and "+0.500" in out and "+0.600" in out
    found = {name: item["strict_match/avg@4"]["value"] for name, item in figures["two_by_two"].items()}
    assert found == pytest.approx(
        {
            **{"answering with, trained without": 0.2, "answering with, trained with": 0.5},
            **{"training with, answered without": 0.3, "training with, answered with": 0.6},
        }
    )


OPTIONS = ("--scorer", "strict_match,flexible_match", "--prompt-column", "question", "--solution-column", "answer")
SAMPLING = ("--samples", 3, "--max-new-tokens", 6, "--batch-size", 4)


def test_a_model_folder(run, model, data, tmp_path):
    arguments = (model, "--data", data, *OPTIONS, *SAMPLING, "--output", tmp_path / "evaluation")
    status, _, err, figures = run(*arguments)
    assert status == 0, err
    (path,) = (tmp_path / "evaluation").iterdir()
    rows = read_rows(path)
    assert len(rows) == 21 and {row["prompt"] for row in rows} == {"say ", "1 ", "7 ", "# ", "a 1", "y", "s"}
    assert 0 < sum("7" in row["completion"] for row in rows) < 21
    # A run that was killed in the middle of a batch goes on, and ends as if it had not been.
    whole = path.read_bytes()
    path.write_bytes(b"".join(line + b"\n" for line in whole.split(b"\n")[:10]) + b'{"number": 2, "to')
    assert run(*arguments)[3] == figures
    assert sorted(path.read_bytes().split(b"\n")) == sorted(whole.split(b"\n"))
    # Other settings do not go into the same file.
    status, _, err, _ = run(*arguments, "--seed", 1)
    assert status == 1 and "other settings" in err
    assert run(*arguments, "--limit", 2, "--output", tmp_path / "other")[3]["targets"]["target"]["samples"] == 6


def test_greedy_is_the_model_s_own_greedy_text(run, model, data, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    run(model, "--data", data, *OPTIONS, "--max-new-tokens", 5, "--output", tmp_path / "evaluation")
    (path,) = (tmp_path / "evaluation").iterdir()
    loaded, words = AutoModelForCausalLM.from_pretrained(model).eval(), tokenizer()
    for row in read_rows(path):
        ids = torch.tensor([words(row["prompt"])["input_ids"]])
        expected = loaded.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=1, pad_token_id=0)
        assert row["completion"] == words.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)


def test_two_by_two_of_models_with_experiences(run, model, data, tmp_path):
    with ExperienceLibrary(tmp_path / "lessons.db") as library:
        library.add(Lesson("say 7"))
    other = build_model(tmp_path / "trained")
    tokenizer().save_pretrained(other)
    status, out, err, figures = run(
        model, "--two-by-two", other, "--experiences", tmp_path / "lessons.db", "--data", data, *OPTIONS, *SAMPLING,
        "--output", tmp_path / "evaluation", "--inject", "lessons", "--position", "user",
    )  # fmt: skip
    assert status == 0, err
    assert len(figures["targets"]) == 4 and "answered without" in out
    files = sorted(path.name for path in (tmp_path / "evaluation").iterdir())
    assert len(files) == 4 and sum(name.endswith("-experiences.jsonl") for name in files) == 2
    with_lessons = read_rows(next((tmp_path / "evaluation").glob("plain-*-experiences.jsonl")))
    assert all("say 7" in row["injected_prompt"] and "say 7" not in row["prompt"] for row in with_lessons)
    # Both models are the same weights: training changes nothing, and the samples are equal.
    cells = list(figures["targets"].values())
    assert cells[0]["metrics"] == cells[2]["metrics"] and cells[1]["metrics"] == cells[3]["metrics"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL"], "needs --data and --scorer"),
        (["MODEL", "--data", "DATA", "--scorer", "strict_mach"], "Unknown reward"),
        (["MODEL", "--data", "DATA", "--scorer", "strict_match"], "has no column 'prompt'"),
        (["MODEL", "--data", "DATA", *OPTIONS, "--prompt-format", "chat"], "no chat template"),
        (["FILE", "--data", "DATA"], "--data is for models"),
        (["FILE", "--k", "8"], "needs at least 8 samples"),
        (["FILE", "--experiences", "FILE"], "has been answered already"),
        (["FILE", "--two-by-two", "FILE"], "takes one model folder with --experiences"),
        (["FILE", "--baseline", "FILE", "--two-by-two", "FILE"], "leave --baseline out"),
        (["MISSING"], "No such file"),
        (["EMPTY", "--data", "DATA", *OPTIONS], "neither config.json nor adapter_config.json"),
        (["MODEL", "--data", "DATA", *OPTIONS, "--samples", "2", "--temperature", "0"], "set samples to 1"),
    ],
)
def test_what_does_not_work_is_refused_in_one_sentence(run, model, data, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {
        "MODEL": model,
        "DATA": data,
        "FILE": samples(tmp_path / "one.jsonl", 3),
        "MISSING": tmp_path / "none.jsonl",
        "EMPTY": tmp_path / "empty",
    }
    status, _, err, _ = run(*(places.get(part, part) for part in arguments), "--output", tmp_path / "evaluation")
    assert status == 1 and message in err and err.startswith("error: ") and not (tmp_path / "evaluation").exists()

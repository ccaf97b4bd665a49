"""(prompt, lessons) rows: what is in them, the file, the command, and TRL's own trainer on them."""

import json

import pytest
from datasets import load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.runs import build_model, tokenizer
from trl_grpo_ext import prepare_model
from trl_grpo_ext.cli.experiences import main
from trl_grpo_ext.experience import (
    Episode,
    ExperienceError,
    ExperienceLibrary,
    Lesson,
    distillation_rows,
    lessons_text,
    read_prompts,
    write_distillation_rows,
)

LESSONS = [Lesson("Trains: add the speeds."), Lesson("Units: convert first.", metadata={"domain": "units"})]
CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "How fast are the trains?"}]


@pytest.fixture
def library(tmp_path):
    with ExperienceLibrary(tmp_path / "experiences.db", seed=0) as opened:
        opened.add(*LESSONS)
        opened.add(Episode("two trains", "5", 1.0), Episode("two trains", "6", 0.5))
        opened.add(Episode("km in miles", "7", 1.0, metadata={"domain": "units"}))
        yield opened


class TestRows:
    def test_the_prompts_of_the_episodes_once_each_with_all_lessons(self, library):
        context = lessons_text(LESSONS)
        expected = [{"prompt": text, "privileged_context": context} for text in ("two trains", "km in miles")]
        assert distillation_rows(library) == expected

    def test_given_prompts_texts_or_messages(self, library):
        rows = distillation_rows(library, [CHAT, CHAT])
        assert rows == [{"prompt": CHAT, "privileged_context": lessons_text(LESSONS)}]
        (row,) = distillation_rows(library, ["two trains"], messages=True)
        assert row["prompt"] == [{"role": "user", "content": "two trains"}]

    def test_the_filter_is_of_lessons_and_episodes(self, library):
        rows = distillation_rows(library, where={"domain": "units"})
        assert rows == [{"prompt": "km in miles", "privileged_context": lessons_text(LESSONS[1:])}]

    def test_the_budget_keeps_the_lesson_that_fits_the_prompt(self, library):
        options = {"token_budget": 5, "count_tokens": lambda text: len(text.split())}
        rows = distillation_rows(library, [CHAT, "convert the units"], messages=True, **options)
        assert [row["privileged_context"] for row in rows] == [lessons_text([lesson]) for lesson in LESSONS]

    def test_a_prompt_without_a_lesson_is_left_out(self, library):
        library.add(Lesson("one two three four five six seven eight"))
        assert distillation_rows(library, ["p"], token_budget=4, count_tokens=lambda text: len(text.split()))
        with pytest.raises(ExperienceError, match="no row is left"):
            distillation_rows(library, ["p"], token_budget=1, count_tokens=lambda text: len(text.split()))

    def test_nothing_to_distil(self, library):
        with pytest.raises(ExperienceError, match=r"no lessons with \{'domain': 'web'\}"):
            distillation_rows(library, where={"domain": "web"})
        with ExperienceLibrary() as empty, pytest.raises(ExperienceError, match="has no lessons: there is nothing"):
            distillation_rows(empty, ["p"])
        with ExperienceLibrary() as fresh, pytest.raises(ExperienceError, match="Give prompts"):
            fresh.add(*LESSONS)
            distillation_rows(fresh)

    @pytest.mark.parametrize(
        ("prompt", "error", "message"),
        [
            (" ", ValueError, "a prompt is empty"),
            (7, TypeError, "strings or non-empty lists of messages"),
            ([], TypeError, "strings or non-empty lists of messages"),
            (
                [*CHAT, {"role": "assistant", "content": "It is"}],
                ValueError,
                "must end with the user's turn.*assistant",
            ),
            ([{"role": "user", "content": [{"type": "image"}]}], TypeError, "images"),
        ],
    )
    def test_bad_prompts(self, library, prompt, error, message):
        with pytest.raises(error, match=message):
            distillation_rows(library, [prompt])

    def test_texts_and_messages_are_not_mixed(self, library):
        with pytest.raises(ValueError, match="messages=True"):
            distillation_rows(library, [CHAT, "a text"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1))
def test_a_written_file_is_read_back(tmp_path, prompts):
    rows = [{"prompt": prompt, "privileged_context": "lesson"} for prompt in prompts]
    write_distillation_rows(tmp_path / "rows.jsonl", rows)
    assert read_prompts(tmp_path / "rows.jsonl") == prompts
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    assert read_prompts(tmp_path / "rows.json") == prompts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "neither JSON Lines"),
        ('{"question": 1}', "row 0 has no column 'prompt'; it has question"),
        ("[1]", "no object"),
    ],
)
def test_files_that_hold_something_else(tmp_path, text, message):
    (tmp_path / "bad.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / "bad.jsonl")


class TestCommand:
    @pytest.fixture
    def distill(self, library, tmp_path, capsys):
        def run(*arguments):
            library.close()
            output = tmp_path / "rows.jsonl"
            status = main(["distill", str(tmp_path / "experiences.db"), str(output), *map(str, arguments)])
            rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()] if output.exists() else []
            return status, rows, capsys.readouterr()

        return run

    def test_the_librarys_own_prompts(self, distill):
        status, rows, captured = distill()
        assert (status, captured.err) == (0, "")
        assert captured.out.startswith("2 rows of prompt and privileged_context written to ")
        assert rows[0] == {"prompt": "two trains", "privileged_context": lessons_text(LESSONS)}

    def test_prompts_of_a_data_set_as_messages_of_one_domain(self, distill, tmp_path):
        (tmp_path / "data.jsonl").write_text('{"question": "How far?"}\n{"question": "How far?"}\n', encoding="utf-8")
        options = ["--prompts", tmp_path / "data.jsonl", "--column", "question"]
        status, rows, _ = distill(*options, "--messages", "--where", "domain=units")
        message = {"role": "user", "content": "How far?"}
        assert (status, rows) == (0, [{"prompt": [message], "privileged_context": lessons_text(LESSONS[1:])}])

    def test_a_budget_in_tokens_of_the_model(self, distill, tmp_path):
        tokenizer().save_pretrained(tmp_path / "tokenizer")
        options = ["--token-budget", len(LESSONS[1].text), "--tokenizer", tmp_path / "tokenizer"]
        _, rows, _ = distill(*options)
        assert [row["privileged_context"] for row in rows] == [lessons_text(LESSONS[1:])] * 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--token-budget", "5"], "--token-budget and --tokenizer go together"),
            (["--tokenizer", "x"], "--token-budget and --tokenizer go together"),
            (["--column", "question"], "--column goes with --prompts"),
        ],
    )
    def test_options_that_need_each_other(self, distill, capsys, arguments, message):
        with pytest.raises(SystemExit) as stopped:
            distill(*arguments)
        assert stopped.value.code == 2 and message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--where", "domain=web"], "nothing to distil"),
            (["--prompts", "nothing.jsonl"], "nothing.jsonl"),
            (["--token-budget", "5", "--tokenizer", "no/such/folder"], "no/such/folder"),
        ],
    )
    def test_refusals_are_one_line(self, distill, arguments, message):
        status, rows, captured = distill(*arguments)
        assert (status, rows) == (1, [])
        assert captured.err.startswith("error: ") and message in captured.err and captured.err.count("\n") == 1


@pytest.mark.line_b
def test_trls_self_distillation_trains_on_the_file(library, tmp_path):
    """The teacher's prompt holds the lessons, the student's does not, and the weights move."""
    import torch
    from transformers import LlamaForCausalLM
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    write_distillation_rows(tmp_path / "rows.jsonl", distillation_rows(library, ["say 1", "say 7", "1 7", "7 7 7"]))
    model = LlamaForCausalLM.from_pretrained(build_model(tmp_path / "model"), dtype=torch.float32)
    config = SDFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=5,
        learning_rate=0.1,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to=[],
        distillation_mode="full_logits",
        teacher_prompt_template="{privileged_context}\n\n{prompt}",
    )
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    trainer = SDFTTrainer(
        model=prepare_model(model),
        args=config,
        train_dataset=load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train"),
        processing_class=tokenizer(),
    )
    composed = []
    builder = trainer.teacher_context_builder
    compose = builder._compose_teacher_prompt
    builder._compose_teacher_prompt = lambda *args: composed.append(compose(*args)) or composed[-1]
    trainer.train()
    assert all(text.startswith(f"{lessons_text(LESSONS)}\n\n") for text in composed)
    assert {text.split("\n\n")[1] for text in composed} == {"say 1", "say 7", "1 7", "7 7 7"}
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, before)

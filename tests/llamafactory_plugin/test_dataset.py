"""LLaMA-Factory's dataset formats, loaded by its own loader, become prompts and reward columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafactory_plugin import workflow
from llamafactory_plugin.dataset import empty_to_none
from llamafactory_plugin.processing import is_absent, reason_to_drop
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.prepared import Prepared, prepare
from tests.llamafactory_plugin.tiny import questions, write_dataset

QUESTIONS = questions(8)
DEMO = Path(__file__).resolve().parents[3] / "shared" / "data" / "llamafactory_demo"
TOOL = {"name": "weather", "description": "Weather of a city.", "parameters": {"type": "object", "properties": {}}}
CALL = {"name": "weather", "arguments": {"city": "Rome"}}
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function",
    "system_tag": "system",
}
needs_demo = pytest.mark.skipif(not DEMO.is_dir(), reason="needs ../shared/data/llamafactory_demo beside the checkout")


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "load_model", lambda *_: pytest.fail("the model was loaded"))


def load(workspace: Workspace, rows: list[dict[str, Any]], run: dict[str, Any] | None = None, **info: Any) -> Prepared:
    """A run on `rows`, described by `info` in dataset_info.json."""
    write_dataset(workspace.data, "set", rows, **info)
    return prepare(workspace.arguments(**{"dataset": "set", "reward_funcs": "any.py:any", **(run or {})}))


@pytest.fixture(autouse=True)
def reward_for_any_data(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "def any(completions, **kwargs):\n    return [0.0] * len(completions)\n"
    (workspace.folder / "any.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(workspace.folder)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def sharegpt(*turns: tuple[str, str | None], **columns: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **columns}


def openai(*messages: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages), **columns}


def load_openai(workspace: Workspace, *rows: dict[str, Any], run: Any = None, **columns: str) -> Prepared:
    info = {"formatting": "openai", "tags": OPENAI_TAGS, "columns": {"messages": "messages", **columns}}
    return load(workspace, [*rows] * 4, run, **info)


class TestAlpaca:
    def test_ground_truth_has_three_names(self, workspace: Workspace) -> None:
        data = load(workspace, QUESTIONS).train
        assert set(data.column_names) == {"prompt", "solution", "answer", "ground_truth"}
        assert data["prompt"] == [[user(row["instruction"])] for row in QUESTIONS]
        for name in ("solution", "answer", "ground_truth"):
            assert data[name] == [row["output"] for row in QUESTIONS]

    def test_input_stands_below_the_instruction(self, workspace: Workspace) -> None:
        rows = [{"instruction": "Add.", "input": "1 + 1" if i else "", "output": "2"} for i in range(8)]
        prompts = load(workspace, rows).train["prompt"]
        assert prompts[0] == [user("Add.")]
        assert prompts[1] == [user("Add.\n1 + 1")]

    def test_prompts_only(self, workspace: Workspace) -> None:
        """LLaMA-Factory itself dies with KeyError 'input' without the columns entry."""
        data = load(workspace, [{"instruction": row["instruction"]} for row in QUESTIONS]).train
        assert data.column_names == ["prompt"]
        data = load(workspace, [{"q": "x"}] * 8, columns={"prompt": "q"}).train
        assert data["prompt"] == [[user("x")]] * 8

    def test_history_and_system(self, workspace: Workspace) -> None:
        rows = [{"q": "three", "a": "four", "old": [["one", "two"]], "sys": "Be short."}] * 8
        columns = {"prompt": "q", "response": "a", "history": "old", "system": "sys"}
        data = load(workspace, rows, columns=columns).train
        assert data["prompt"][0] == [system("Be short."), user("one"), assistant("two"), user("three")]
        assert data["solution"][0] == "four"

    def test_named_columns(self, workspace: Workspace) -> None:
        data = load(workspace, [{"q": "x", "a": "y", "b": "z"}] * 8, columns={"prompt": "q", "response": "a"}).train
        assert (data["prompt"][0], data["solution"][0]) == ([user("x")], "y")
        assert "b" not in data.column_names

    def test_an_absent_response_is_none(self, workspace: Workspace) -> None:
        rows = [{**row, "output": None if i < 2 else row["output"]} for i, row in enumerate(QUESTIONS)]
        data = load(workspace, rows).train
        assert data["solution"][:3] == [None, None, QUESTIONS[2]["output"]]


class TestSharegpt:
    def test_the_last_answer_is_the_ground_truth(self, workspace: Workspace) -> None:
        turns = [("system", "Be short."), ("human", "one"), ("gpt", "two"), ("human", "three"), ("gpt", "four")]
        data = load(workspace, [sharegpt(*turns)] * 8, formatting="sharegpt").train
        assert data["prompt"][0] == [system("Be short."), user("one"), assistant("two"), user("three")]
        assert data["solution"][0] == "four"

    def test_tools_and_tool_turns(self, workspace: Workspace) -> None:
        turns = [("human", "Warm?"), ("function_call", json.dumps(CALL)), ("observation", "30"), ("gpt", "Yes.")]
        rows = [sharegpt(*turns, tools=json.dumps([TOOL]))] * 8
        run = load(workspace, rows, formatting="sharegpt", columns={"messages": "conversations", "tools": "tools"})
        row = run.train[0]
        assert [message["role"] for message in row["prompt"]] == ["user", "function", "tool"]
        assert row["solution"] == "Yes."
        assert "Weather of a city." in run.renderer.decode(run.renderer.encode(row["prompt"], row["tools"]))

    def test_a_call_as_the_answer(self, workspace: Workspace) -> None:
        rows = [sharegpt(("human", "Warm?"), ("function_call", json.dumps(CALL)))] * 8
        assert json.loads(load(workspace, rows, formatting="sharegpt").train["solution"][0]) == CALL

    @pytest.mark.parametrize(
        "turns",
        [
            [("human", "one")],
            [("system", "Be short."), ("human", "one")],
            [("human", "one"), ("gpt", "two"), ("human", "three")],
            [("human", "one"), ("function_call", json.dumps(CALL)), ("observation", "30")],
        ],
    )
    def test_prompt_only_chats_are_kept(self, workspace: Workspace, turns: Any, log_lines: list[str]) -> None:
        data = load(workspace, [sharegpt(*turns)] * 8, formatting="sharegpt").train
        assert len(data) == 8
        assert data.column_names == ["prompt"]
        assert data["prompt"][0][-1]["content"] == turns[-1][1]
        assert not any("Dropped" in line for line in log_lines)

    @pytest.mark.parametrize(
        "broken",
        [
            [("gpt", "x"), ("human", "y")],
            [("human", "x"), ("human", "y"), ("gpt", "z")],
            [("human", "x"), ("human", "y")],
            [("assistant", "x"), ("user", "y")],
            [("system", "x")],
            [("human", None), ("gpt", "x")],
            [],
        ],
    )
    def test_malformed_rows_are_dropped_and_counted(
        self, workspace: Workspace, broken: Any, log_lines: list[str]
    ) -> None:
        good = sharegpt(("human", "one"), ("gpt", "two"))
        data = load(workspace, [sharegpt(*broken), *[good] * 7], formatting="sharegpt").train
        assert data["prompt"] == [[user("one")]] * 7
        assert any("Dropped from train_dataset: 0 of 8" in line and "1 malformed" in line for line in log_lines)

    def test_an_empty_thought_is_no_prompt(self, workspace: Workspace) -> None:
        """With thinking off, such a template renders a few tokens even for a row without any turn."""
        rows = [sharegpt(("gpt", "x"), ("human", "y")), *[sharegpt(("human", "one"), ("gpt", "two"))] * 7]
        run = {"template": "qwen3", "enable_thinking": False}
        assert len(load(workspace, rows, run, formatting="sharegpt").train) == 7

    def test_rows_with_broken_tools_are_dropped(self, workspace: Workspace, log_lines: list[str]) -> None:
        rows = [sharegpt(("human", "one"), ("gpt", "two"), tools=tools) for tools in ["no json", *[""] * 7]]
        columns = {"messages": "conversations", "tools": "tools"}
        assert len(load(workspace, rows, formatting="sharegpt", columns=columns).train) == 7
        assert any("1 malformed" in line for line in log_lines)


class TestOpenai:
    def test_nothing_is_appended_to_the_system_text(self, workspace: Workspace) -> None:
        """LLaMA-Factory's converter appends "detailed thinking off"."""
        data = load_openai(
            workspace,
            openai(system("Be short."), user("one"), assistant("two")),
            openai(user("one"), assistant("two")),
        ).train
        assert data["prompt"][0] == [system("Be short."), user("one")]
        assert data["prompt"][1] == [user("one")]
        assert data["solution"][0] == "two"

    def test_a_system_column(self, workspace: Workspace) -> None:
        row = openai(user("one"), assistant("two"), sys="Be short.")
        assert load_openai(workspace, row, row, system="sys").train["prompt"][0] == [system("Be short."), user("one")]

    def test_tool_calls(self, workspace: Workspace) -> None:
        call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}
        result = {"role": "tool", "content": "30", "tool_calls": None}
        row = openai(user("Warm?") | {"tool_calls": None}, call, result, assistant("Yes.") | {"tool_calls": None})
        prompt = load_openai(workspace, row, row).train["prompt"][0]
        assert [message["role"] for message in prompt] == ["user", "function", "tool"]
        assert json.loads(prompt[1]["content"]) == [CALL]
        assert prompt[2]["content"] == "30"

    def test_prompts_only(self, workspace: Workspace) -> None:
        data = load_openai(workspace, openai(user("one")), openai(user("one"), assistant("two"), user("three"))).train
        assert data.column_names == ["prompt"]
        assert [len(prompt) for prompt in data["prompt"][:2]] == [1, 3]

    def test_a_trailing_tool_message(self, workspace: Workspace) -> None:
        results = [{"role": "tool", "content": "30"}, {"role": "tool", "content": "31"}]
        row = openai(user("Warm?"), {"role": "function", "content": json.dumps(CALL)}, *results)
        prompt = load_openai(workspace, row, row).train["prompt"][0]
        assert [message["role"] for message in prompt] == ["user", "function", "tool"]
        assert "30" in prompt[2]["content"] and "31" in prompt[2]["content"]

    def test_tools_as_text(self, workspace: Workspace) -> None:
        row = openai(system("Be short."), user("one"), assistant("two"), tools=json.dumps([TOOL]))
        train = load_openai(workspace, row, row, tools="tools").train
        assert json.loads(train["tools"][0]) == [TOOL]
        assert train["prompt"][0][0] == system("Be short.")


class TestRanking:
    def test_alpaca(self, workspace: Workspace) -> None:
        rows = [{"q": row["instruction"], "good": row["output"], "bad": "no"} for row in QUESTIONS]
        columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
        data = load(workspace, rows, ranking=True, columns=columns).train
        assert data["chosen"] == data["solution"] == [row["output"] for row in QUESTIONS]
        assert data["rejected"] == ["no"] * 8

    def test_sharegpt(self, workspace: Workspace) -> None:
        answers = {"chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"}}
        rows = [sharegpt(("human", "one"), ("gpt", "two"), ("human", "three"), **answers)] * 8
        columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
        data = load(workspace, rows, ranking=True, formatting="sharegpt", columns=columns).train
        assert data[0] == {
            "prompt": [user("one"), assistant("two"), user("three")],
            **dict.fromkeys(("solution", "answer", "ground_truth", "chosen"), "yes"),
            "rejected": "no",
        }

    def test_other_stages_still_refuse_it(self, workspace: Workspace) -> None:
        rows = [{"q": "x", "good": "y", "bad": "no"}] * 8
        columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
        load(workspace, rows, ranking=True, columns=columns)
        given = dict.fromkeys(["grpo_group_size", "grpo_max_completion_length"])
        assert "not applicable" in workspace.refused(stage="sft", dataset="set", **given)


COLUMNS = {"prompt": "instruction", "response": "output"}
ROWS = [row | {"level": i, "tests": ["a", str(i)], "solution": f"s{i}"} for i, row in enumerate(QUESTIONS)]


class TestExtraColumns:
    def test_named_in_dataset_info(self, workspace: Workspace) -> None:
        data = load(workspace, ROWS, columns=COLUMNS | {"extra": ["level", "tests"]}).train
        assert data["level"] == list(range(8))
        assert data["tests"][3] == ["a", "3"]
        assert data["solution"][0] == QUESTIONS[0]["output"]

    @pytest.mark.parametrize("given", ["level,tests", ["level", "tests"]])
    def test_named_by_the_run(self, workspace: Workspace, given: Any) -> None:
        data = load(workspace, ROWS, {"grpo_extra_columns": given}).train
        assert (data["level"][3], data["tests"][3]) == (3, ["a", "3"])

    def test_both_are_united(self, workspace: Workspace) -> None:
        run = {"grpo_extra_columns": "tests,level"}
        data = load(workspace, ROWS, run, columns=COLUMNS | {"extra": ["level"]}).train
        assert {"level", "tests"} <= set(data.column_names)

    @pytest.mark.parametrize("name", ["solution", "answer", "ground_truth"])
    def test_a_ground_truth_column_of_the_data_wins(self, workspace: Workspace, name: str) -> None:
        rows = [row | {name: i} for i, row in enumerate(QUESTIONS)]
        data = load(workspace, rows, {"grpo_extra_columns": name}).train
        assert data[name] == list(range(8))
        others = {"solution", "answer", "ground_truth"} - {name}
        assert all(data[other] == [row["output"] for row in QUESTIONS] for other in others)

    @pytest.mark.parametrize("value", [0, False, 0.0])
    def test_zero_is_a_ground_truth(self, workspace: Workspace, value: Any) -> None:
        rows = [row | {"solution": value} for row in QUESTIONS]
        assert load(workspace, rows, {"grpo_extra_columns": "solution"}).train["solution"] == [value] * 8
        assert not is_absent(value)
        assert is_absent(None) and is_absent("")
        row = {"solution": value, "answer": ""}
        assert empty_to_none(row, ["solution", "answer"]) == {"solution": value, "answer": None}

    def test_reward_functions_get_them(self, workspace: Workspace) -> None:
        code = "def mine(completions, level, tests, **kwargs):\n    return [0.0] * len(completions)\n"
        (workspace.folder / "mine.py").write_text(code, encoding="utf-8")
        run = {"grpo_extra_columns": "level,tests", "reward_funcs": "mine.py:mine"}
        assert load(workspace, ROWS, run).rewards[0].__name__ == "mine"

    def test_several_datasets_with_different_columns(self, workspace: Workspace) -> None:
        write_dataset(workspace.data, "a", ROWS, columns=COLUMNS | {"extra": ["level"]})
        write_dataset(workspace.data, "b", ROWS, columns=COLUMNS | {"extra": ["tests"]})
        pairs = [{"q": "x", "good": "y", "bad": "no"}] * 4
        columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
        write_dataset(workspace.data, "c", pairs, ranking=True, columns=columns)
        data = prepare(workspace.arguments(dataset="a,b,c", reward_funcs="any.py:any")).train
        assert len(data) == 20
        assert data["level"] == [*range(8), *[None] * 12]
        assert data["tests"][8] == ["a", "0"]
        assert data["rejected"] == [*[None] * 16, *["no"] * 4]

    def test_interleaved(self, workspace: Workspace) -> None:
        write_dataset(workspace.data, "a", ROWS)
        write_dataset(workspace.data, "b", ROWS)
        run = prepare(workspace.arguments(dataset="a,b", mix_strategy="interleave_under", interleave_probs="0.5,0.5"))
        assert len(run.train) >= 8


class TestLoading:
    def test_val_size(self, workspace: Workspace) -> None:
        run = prepare(workspace.arguments(val_size=4, do_eval=True))
        assert (len(run.train), len(run.eval)) == (12, 4)
        assert run.train.column_names == run.eval.column_names

    def test_eval_dataset(self, workspace: Workspace) -> None:
        write_dataset(workspace.data, "held_out", questions(4, seed=9))
        run = prepare(workspace.arguments(eval_dataset="held_out", do_eval=True))
        assert run.eval["solution"] == [row["output"] for row in questions(4, seed=9)]

    def test_an_evaluation_on_each_dataset(self, workspace: Workspace) -> None:
        for seed, name in enumerate(("first", "second")):
            write_dataset(workspace.data, name, questions(4, seed=seed))
        given = {"eval_dataset": "first,second", "eval_on_each_dataset": True, "do_eval": True}
        run = prepare(workspace.arguments(**given))
        assert set(run.eval) == {"first", "second"}
        assert run.eval["second"]["solution"] == [row["output"] for row in questions(4, seed=1)]
        assert {name for name, _ in run.data.each()} == {"train_dataset", "first", "second"}

    def test_only_an_evaluation(self, workspace: Workspace) -> None:
        given = {"eval_dataset": "words", "do_eval": True, "do_train": None, "dataset": None}
        assert list(prepare(workspace.arguments(**given)).data.datasets) == ["eval_dataset"]

    def test_max_samples(self, workspace: Workspace) -> None:
        data = prepare(workspace.arguments(max_samples=5)).train
        assert data["solution"] == [row["output"] for row in questions(16)[:5]]

    def test_several_workers(self, workspace: Workspace) -> None:
        run = {"preprocessing_num_workers": 2, "grpo_extra_columns": "level"}
        rows = [row | {"level": i} for i, row in enumerate(QUESTIONS)]
        data = load(workspace, rows, run).train
        assert data["level"] == list(range(8))
        assert data["solution"] == [row["output"] for row in QUESTIONS]

    def test_tokenized_path_is_written_and_read(self, workspace: Workspace, log_lines: list[str]) -> None:
        rows = [row | {"level": i} for i, row in enumerate(QUESTIONS)]
        path = workspace.folder / "tokenized"
        given = {"tokenized_path": str(path), "grpo_extra_columns": "level", "val_size": 2, "cutoff_len": 200}
        first = load(workspace, rows, given)
        assert (path / "dataset_dict.json").exists()
        (workspace.data / "set.json").unlink()
        second = prepare(workspace.arguments(dataset="set", reward_funcs="any.py:any", **given))
        assert second.train.to_list() == first.train.to_list()
        assert second.eval.to_list() == first.eval.to_list()

    def test_cutoff_len_holds_for_tokenized_data_too(self, workspace: Workspace, log_lines: list[str]) -> None:
        rows = [QUESTIONS[0], {"instruction": "word " * 50, "output": "x"}, *QUESTIONS[2:]]
        path = str(workspace.folder / "tokenized")
        assert len(load(workspace, rows, {"tokenized_path": path}).train) == 8
        assert len(load(workspace, rows, {"tokenized_path": path, "cutoff_len": 100}).train) == 7
        assert len(load(workspace, rows, {"tokenized_path": path}).train) == 8

    def test_the_cache_is_read_again(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        from llamafactory_plugin.rendering import PromptRenderer

        encoded: list[Any] = []
        original = PromptRenderer.encode

        def counted(self: Any, messages: Any, tools: Any = None) -> list[int]:
            encoded.append(messages)
            return original(self, messages, tools)

        monkeypatch.setattr(PromptRenderer, "encode", counted)
        write_dataset(workspace.data, "set", QUESTIONS)
        rendered = []
        for overwrite in (False, False, True):
            encoded.clear()
            data = prepare(workspace.arguments(dataset="set", overwrite_cache=overwrite)).train
            assert data["prompt"] == [[user(row["instruction"])] for row in QUESTIONS]
            rendered.append(len(encoded))
        # The printed example is rendered every time.
        assert rendered == [9, 1, 9]

    def test_other_columns_are_not_read_from_the_cache(self, workspace: Workspace) -> None:
        rows = [row | {"level": i, "kind": f"k{i}"} for i, row in enumerate(QUESTIONS)]
        write_dataset(workspace.data, "set", rows)
        for name in ("level", "kind"):
            given = {"dataset": "set", "overwrite_cache": False, "grpo_extra_columns": name}
            assert {"level", "kind"} & set(prepare(workspace.arguments(**given)).train.column_names) == {name}

    def test_other_templates_are_not_read_from_the_cache(self, workspace: Workspace) -> None:
        longest = [
            prepare(workspace.arguments(overwrite_cache=False, template=name)).data.longest_prompt
            for name in ("qwen", "llama3")
        ]
        assert longest[0] != longest[1]

    def test_another_version_does_not_read_this_ones_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from datasets.fingerprint import Hasher

        from llamafactory_plugin import conversion, processing

        def hashes() -> list[str]:
            processor = processing.GRPODatasetProcessor(None, None, None, None, max_prompt_length=9)
            return [Hasher.hash(conversion.KeepColumns(None, None)), Hasher.hash(processor)]

        before = hashes()
        assert hashes() == before
        for module in (conversion, processing):
            monkeypatch.setattr(module, "__version__", "0.0.0")
        assert all(new != old for new, old in zip(hashes(), before, strict=True))

    def test_llamafactorys_functions_are_put_back(self, workspace: Workspace) -> None:
        from llamafactory.data import converter, loader

        names = ("get_dataset_list", "_get_dataset_processor", "_load_single_dataset")
        before = [getattr(loader, name) for name in names], converter.get_dataset_converter
        prepare(workspace.arguments())
        workspace.refused(grpo_extra_columns="missing")
        assert before == ([getattr(loader, name) for name in names], converter.get_dataset_converter)


class TestLength:
    def test_long_prompts_are_dropped_counted_and_reported(self, workspace: Workspace, log_lines: list[str]) -> None:
        rows = [*QUESTIONS[:6], *[{"instruction": "word " * 90, "output": "x"}] * 2]
        run = load(workspace, rows, {"cutoff_len": 150})
        assert run.train["prompt"] == [[user(row["instruction"])] for row in QUESTIONS[:6]]
        assert (
            "Dropped from train_dataset: 2 of 8 prompts longer than 150 tokens (cutoff_len), 0 malformed." in log_lines
        )

    @pytest.mark.parametrize("too_short", [0, 1])
    def test_a_prompt_may_have_cutoff_len_tokens(self, workspace: Workspace, too_short: int) -> None:
        rows = [*QUESTIONS[:7], {"instruction": "word " * 90, "output": "x"}]
        longest = load(workspace, rows).data.longest_prompt
        assert len(load(workspace, rows, {"cutoff_len": longest - too_short}).train) == 8 - too_short

    def test_the_longest_prompt_is_counted_with_its_template(self, workspace: Workspace) -> None:
        run = load(workspace, QUESTIONS)
        assert run.data.longest_prompt == max(len(run.renderer.encode(prompt)) for prompt in run.train["prompt"])

    def test_the_tokenizers_own_limit_holds_too(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        original = workflow.load_tokenizer

        def short(model_args: Any) -> Any:
            module = original(model_args)
            module["tokenizer"].model_max_length = 150
            return module

        monkeypatch.setattr(workflow, "load_tokenizer", short)
        rows = [*QUESTIONS[:7], {"instruction": "word " * 90, "output": "x"}]
        assert len(load(workspace, rows).train) == 7

    @pytest.mark.parametrize(("tokens", "reason"), [(0, "invalid"), (1, ""), (9, ""), (10, "too long")])
    def test_reasons(self, tokens: int, reason: str) -> None:
        assert reason_to_drop(tokens, 9) == reason


class TestPrintedExample:
    def test_prompt_ground_truth_and_extras(self, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
        rows = [row | {"level": 0, "kind": "easy"} for row in QUESTIONS]
        load(workspace, rows, {"grpo_extra_columns": "level,kind", "val_size": 2})
        text = capsys.readouterr().out
        train, _, evaluation = text.partition("eval example:")
        for part in (train, evaluation):
            assert "<|im_start|>system\nYou are Qwen" in part
            assert "<|im_end|>\n<|im_start|>assistant\n" in part
            assert "level:\n0\n" in part
            assert "kind:\neasy\n" in part
            assert "rejected:" not in part
        assert any(f"solution:\n{row['output']}\n" in train for row in QUESTIONS)

    def test_a_dropped_first_row(self, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
        rows = [{"instruction": "word " * 90, "output": "x"}, *QUESTIONS[1:]]
        load(workspace, rows, {"cutoff_len": 150})
        assert "(the first row is dropped: too long)" in capsys.readouterr().out


@needs_demo
class TestRealFiles:
    """The files that LLaMA-Factory's own examples use."""

    def demo(self, workspace: Workspace, name: str, **overrides: Any) -> Prepared:
        given = {"dataset": name, "dataset_dir": str(DEMO), "max_samples": 40, "reward_funcs": "any.py:any"}
        return prepare(workspace.arguments(**(given | overrides)))

    def rows(self, name: str) -> list[dict[str, Any]]:
        return json.loads((DEMO / f"{name}.json").read_text(encoding="utf-8"))[:40]

    def test_alpaca_en_demo(self, workspace: Workspace) -> None:
        data = self.demo(workspace, "alpaca_en_demo").train
        rows = self.rows("alpaca_en_demo")
        assert data["solution"] == [row["output"] for row in rows]
        texts = [row["instruction"] + (f"\n{row['input']}" if row["input"] else "") for row in rows]
        assert [prompt[-1]["content"] for prompt in data["prompt"]] == texts

    def test_glaive_toolcall_en_demo(self, workspace: Workspace) -> None:
        run = self.demo(workspace, "glaive_toolcall_en_demo", template="qwen3", cutoff_len=8000)
        rows = self.rows("glaive_toolcall_en_demo")
        assert len(run.train) == 40
        assert run.train["solution"] == [row["conversations"][-1]["value"] for row in rows]
        with_tools = next(row for row in run.train if row["tools"])
        name = json.loads(with_tools["tools"])[0]["name"]
        assert name in run.renderer.decode(run.renderer.encode(with_tools["prompt"], with_tools["tools"]))
        roles = {message["role"] for prompt in run.train["prompt"] for message in prompt}
        assert {"user", "assistant", "function", "tool"} <= roles

    def test_dpo_en_demo(self, workspace: Workspace, log_lines: list[str]) -> None:
        run = self.demo(workspace, "dpo_en_demo", reward_funcs=None, cutoff_len=8000)
        rows = self.rows("dpo_en_demo")
        assert [reward.__name__ for reward in run.rewards] == ["preference_overlap"]
        assert run.train["chosen"] == [row["chosen"]["value"] for row in rows]
        assert run.train["rejected"] == [row["rejected"]["value"] for row in rows]

    def test_mixed(self, workspace: Workspace) -> None:
        assert len(self.demo(workspace, "alpaca_en_demo,dpo_en_demo", cutoff_len=8000).train) == 80

    @pytest.mark.parametrize(("name", "part"), [("kto_en_demo", "is a kto set"), ("mllm_demo", "has images")])
    def test_refused(self, workspace: Workspace, name: str, part: str) -> None:
        assert part in workspace.refused(dataset=name, dataset_dir=str(DEMO))

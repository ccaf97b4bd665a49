"""Wrong input ends in one sentence that names the argument and the way out, before any model is loaded."""

from __future__ import annotations

import json
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafactory_plugin import batches, config_mapping, workflow
from llamafactory_plugin.errors import UsageError, nearest, show_usage_errors_in_one_line
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.prepared import flags, prepare
from tests.llamafactory_plugin.tiny import questions, write_dataset

QUESTIONS = questions(8)


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that gets as far as the model fails its test."""
    monkeypatch.setattr(workflow, "load_model", lambda *_: pytest.fail("the model was loaded"))


def refused(workspace: Workspace, *parts: str, **overrides: Any) -> str:
    """The sentence of a `UsageError` that holds all of `parts`."""
    sentence = workspace.refused(error=UsageError, **overrides)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence, sentence
    return sentence


def refused_argv(workspace: Workspace, argv: list[str], error: type[Exception] = UsageError) -> str:
    from llamafactory.train.tuner import run_exp

    with pytest.raises(error) as caught:
        run_exp([*flags(workspace.defaults), *argv])
    assert not workspace.output.exists()
    return str(caught.value)


class TestValues:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("grpo_group_size", 1),
            ("grpo_group_size", "4"),
            ("grpo_group_size", 4.0),
            ("grpo_group_size", True),
            ("grpo_beta", -0.1),
            ("grpo_beta", math.nan),
            ("grpo_beta", math.inf),
            ("grpo_beta", "0.1"),
            ("grpo_clip_range", -1),
            ("grpo_clip_range", math.nan),
            ("grpo_clip_range_high", -0.1),
            ("grpo_clip_range_high", "a"),
            ("grpo_num_iterations", 0),
            ("grpo_num_iterations", 1.5),
            ("grpo_max_completion_length", 0),
            ("grpo_max_completion_length", "512"),
            ("grpo_temperature", 0),
            ("grpo_temperature", -1),
            ("grpo_temperature", math.nan),
            ("grpo_eval_temperature", -1),
            ("grpo_use_vllm", "yes"),
            ("grpo_normalize_advantages", "yes"),
            ("reward_weights", "heavy"),
            ("reward_weights", "nan"),
            ("reward_weights", ["inf"]),
            ("temperature", 0),
            ("temperature", -1.0),
            ("temperature", math.nan),
            ("temperature", "hot"),
            ("top_p", 0),
            ("top_p", 1.1),
            ("top_p", "x"),
            ("top_k", -1),
            ("top_k", 1.5),
            ("repetition_penalty", 0),
            ("per_device_train_batch_size", 0),
            ("per_device_train_batch_size", -4),
            ("per_device_train_batch_size", "8"),
            ("gradient_accumulation_steps", 0),
        ],
    )
    def test_out_of_range_or_of_the_wrong_type(self, workspace: Workspace, key: str, value: Any) -> None:
        sentence = refused(workspace, **{key: value})
        assert sentence.startswith(f"{key} must be ")
        assert str(value).strip("[]'") in sentence or value == 0

    @pytest.mark.parametrize("value", [0, -1, "64"])
    def test_max_new_tokens(self, workspace: Workspace, value: Any) -> None:
        refused(
            workspace, "max_new_tokens must be a whole number", max_new_tokens=value, grpo_max_completion_length=None
        )

    def test_max_new_tokens_beside_the_own_key(self, workspace: Workspace) -> None:
        refused(workspace, "max_new_tokens (64)", "grpo_max_completion_length (8)", "keep one", max_new_tokens=64)

    @pytest.mark.parametrize(
        ("key", "value", "right"),
        [
            ("grpo_loss_type", "dapoo", "dapo"),
            ("grpo_preset", "gsp", "gspo"),
            ("grpo_scale_rewards", "batches", "batch"),
            ("grpo_reward_control", "shufled", "shuffled"),
            ("grpo_loss_type", "DAPO", "dapo"),
        ],
    )
    def test_a_misspelt_choice(self, workspace: Workspace, key: str, value: str, right: str) -> None:
        refused(workspace, f"{key} must be one of ", repr(value), f"did you mean {right!r}?", **{key: value})

    def test_a_misspelt_choice_as_a_flag(
        self, workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from llamafactory.train.tuner import run_exp

        with pytest.raises(SystemExit) as ended:
            run_exp([*flags(workspace.defaults), "--grpo_loss_type", "dapoo"])
        assert ended.value.code != 0
        assert "dapoo" in capsys.readouterr().err
        assert not workspace.output.exists()

    @pytest.mark.parametrize("key", ["grpo_group_size", "grpo_beta", "grpo_loss_type", "grpo_use_vllm"])
    def test_a_yaml_key_without_a_value(self, workspace: Workspace, key: str) -> None:
        workspace.arguments = lambda **_: workspace.defaults | {key: None}  # type: ignore[method-assign]
        assert workspace.refused(error=UsageError).startswith(f"{key} has no value")

    def test_two_ways_to_say_how_rewards_are_scaled(self, workspace: Workspace) -> None:
        both = {"grpo_normalize_advantages": True, "grpo_scale_rewards": "none"}
        refused(workspace, "grpo_normalize_advantages: true", "grpo_scale_rewards: group", "remove one", **both)

    def test_vllm_that_is_not_installed(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        from trl import import_utils

        monkeypatch.setattr(import_utils, "is_vllm_available", lambda: False)
        refused(workspace, "grpo_use_vllm", "install", grpo_use_vllm=True)

    def test_liger_that_is_not_installed(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        from trl import import_utils

        monkeypatch.setattr(import_utils, "is_liger_kernel_available", lambda: False)
        sentence = workspace.refused(grpo_config={"use_liger_loss": True})
        assert sentence.startswith("grpo_config.use_liger_loss") and "pip install liger-kernel" in sentence

    def test_a_misspelt_template(self, workspace: Workspace) -> None:
        assert workspace.refused(template="qwn").endswith("did you mean 'qwen'?")

    def test_a_misspelt_stage_beside_own_keys(self, workspace: Workspace) -> None:
        assert workspace.refused(stage="grop").endswith("not 'grop'; did you mean 'grpo'?")


class TestNames:
    def test_a_misspelt_key(self, workspace: Workspace) -> None:
        refused(workspace, "'grpo_grop_size'", "did you mean 'grpo_group_size'?", grpo_grop_size=4)
        refused(workspace, "'learnin_rate'", "did you mean 'learning_rate'?", learnin_rate=1e-4)

    @pytest.mark.parametrize("form", [["--grpo_grop_size", "4"], ["--grpo-grop-size=4"]])
    def test_a_misspelt_flag(self, workspace: Workspace, form: list[str]) -> None:
        assert "did you mean 'grpo_group_size'?" in refused_argv(workspace, form)

    def test_a_misspelt_override(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        from llamafactory.train.tuner import run_exp

        monkeypatch.setattr(sys, "argv", ["llamafactory-cli", str(workspace.yaml()), "grpo_grop_size=4"])
        with pytest.raises(UsageError, match="did you mean 'grpo_group_size'"):
            run_exp()
        assert not workspace.output.exists()

    def test_llamafactorys_switch_for_extra_keys(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALLOW_EXTRA_ARGS", "1")
        assert prepare(workspace.arguments(grpo_grop_size=5)).config.num_generations == 4

    @pytest.mark.parametrize("stage", ["grop", "GRPO", "gpro"])
    def test_a_misspelt_stage(self, workspace: Workspace, stage: str) -> None:
        for key in ("grpo_group_size", "grpo_max_completion_length"):
            workspace.defaults.pop(key)
        refused(workspace, "stage must be one of", "did you mean 'grpo'?", stage=stage)

    @pytest.mark.parametrize("stage", ["sft", "dpo"])
    @pytest.mark.parametrize("key", ["grpo_beta", "reward_funcs", "reward_weights", "experience_path"])
    def test_own_keys_in_another_stage(self, workspace: Workspace, stage: str, key: str) -> None:
        given = {"grpo_group_size": None, "grpo_max_completion_length": None, key: "1"}
        refused(workspace, key, "only stage grpo reads this", f"stage is {stage}", "remove it", stage=stage, **given)

    @pytest.mark.parametrize("flag", ["--grpo_beta", "--grpo-beta"])
    def test_own_flags_in_another_stage(self, workspace: Workspace, flag: str) -> None:
        for key in ("grpo_group_size", "grpo_max_completion_length"):
            workspace.defaults.pop(key)
        workspace.defaults["stage"] = "sft"
        assert "grpo_beta: only stage grpo reads this; stage is sft" in refused_argv(workspace, [flag, "0.1"])

    def test_own_keys_without_a_stage(self, workspace: Workspace) -> None:
        refused(workspace, "only stage grpo reads this; stage is sft", stage=None)


class TestGrpoConfig:
    @pytest.mark.parametrize(
        ("mapping", "parts"),
        [
            ({"deltaa": 4}, ["grpo_config.deltaa", "did you mean 'delta'?"]),
            ({"beta": 0.1}, ["grpo_config.beta", "grpo_beta"]),
            ({"num_generations": 2}, ["grpo_config.num_generations", "grpo_group_size"]),
            ({"temperature": 2}, ["grpo_config.temperature", "grpo_temperature"]),
            ({"max_prompt_length": 2}, ["grpo_config.max_prompt_length", "cutoff_len"]),
            ({"learning_rate": 1e-3}, ["grpo_config.learning_rate", "beside grpo_config"]),
            ({"output_dir": "x"}, ["grpo_config.output_dir", "beside grpo_config"]),
            ({"disable_dropout": False}, ["grpo_config.disable_dropout", "remove it"]),
            ({"delta": "4"}, ["grpo_config.delta must be float", "'4'"]),
            ({"delta": math.nan}, ["grpo_config.delta must be a number", "nan"]),
            ({"log_completions": "yes"}, ["grpo_config.log_completions must be bool", "'yes'"]),
            ({"steps_per_generation": True}, ["grpo_config.steps_per_generation must be int", "True"]),
            ({"steps_per_generation": 0}, ["grpo_config.steps_per_generation must be a whole number of at least 1"]),
            ({"steps_per_generation": -1}, ["grpo_config.steps_per_generation", "-1"]),
            ({"top_entropy_quantile": 2.0}, ["grpo_config.top_entropy_quantile", "at most 1"]),
            ({"min_p": -0.1}, ["grpo_config.min_p", "-0.1"]),
            ({"importance_sampling_level": "sequnce"}, ["did you mean 'sequence'?"]),
            ({"vllm_mode": "colocated"}, ["grpo_config.vllm_mode", "did you mean 'colocate'?"]),
            ({"generation_batch_size": 6}, ["grpo_config.generation_batch_size (6)", "grpo_group_size (4)"]),
            ({"generation_batch_size": 12}, ["grpo_config", "generation_batch_size (12)"]),
            ({"generation_batch_size": 8, "steps_per_generation": 1}, ["grpo_config", "steps_per_generation"]),
            ("delta", ["grpo_config: 'delta' is not a JSON object", "YAML"]),
            ([1], ["grpo_config: [1] is not a JSON object"]),
            ("[1]", ["grpo_config: '[1]' is not a JSON object"]),
        ],
    )
    def test_refused(self, workspace: Workspace, mapping: Any, parts: list[str]) -> None:
        refused(workspace, *parts, grpo_config=mapping)

    def test_every_key_of_its_own_is_refused(self) -> None:
        from trl import GRPOConfig

        for name in config_mapping.OWN_KEYS:
            with pytest.raises(UsageError, match=rf"grpo_config\.{name}: "):
                config_mapping.config_mapping({name: None}, GRPOConfig, set())

    def test_json_that_torchrun_has_cut_at_its_spaces(self, workspace: Workspace) -> None:
        cut = """--grpo_config {"delta": 4}""".split()
        sentence = refused_argv(workspace, cut)
        assert "grpo_config" in sentence
        assert "in the YAML file as `grpo_config:`" in sentence

    def test_json_with_spaces_in_one_piece_is_no_problem(self, workspace: Workspace) -> None:
        assert prepare([*flags(workspace.defaults), "--grpo_config", '{"delta": 4}']).config.delta == 4


class TestBatch:
    def test_the_nearest_legal_sizes_are_named(self, workspace: Workspace) -> None:
        refused(
            workspace, "per_device_train_batch_size (6)", "set per_device_train_batch_size to 4 or 8",
            "grpo_group_size (4)", per_device_train_batch_size=6,
        )  # fmt: skip

    def test_the_evaluation_batch(self, workspace: Workspace) -> None:
        given = {"do_eval": True, "val_size": 4, "per_device_eval_batch_size": 6}
        refused(workspace, "per_device_eval_batch_size (6)", "to 4 or 8", **given)
        workspace.defaults.pop("do_train")
        refused(workspace, "per_device_eval_batch_size (6)", **given)

    def test_an_evaluation_batch_that_is_not_used_is_not_checked(self, workspace: Workspace) -> None:
        assert prepare(workspace.arguments(per_device_eval_batch_size=3)).config.per_device_eval_batch_size == 3

    @given(
        batch=st.integers(1, 200),
        group_size=st.integers(2, 64),
        world_size=st.integers(1, 16),
        steps=st.integers(1, 16),
        is_eval=st.booleans(),
    )
    def test_the_suggested_sizes_work(
        self, batch: int, group_size: int, world_size: int, steps: int, is_eval: bool
    ) -> None:
        """Either the batch holds whole groups, or the sizes named do, and nothing between them does."""
        key = "per_device_eval_batch_size" if is_eval else "per_device_train_batch_size"
        run = SimpleNamespace(training_args=SimpleNamespace(world_size=world_size, do_eval=is_eval))
        values = {"num_generations": group_size, "gradient_accumulation_steps": steps}
        values |= {"per_device_train_batch_size": group_size, "per_device_eval_batch_size": group_size}
        factor = world_size * (1 if is_eval else steps)
        try:
            batches.check_batch(run, values | {key: batch})  # type: ignore[arg-type]
        except UsageError as error:
            suggested = [int(text) for text in re.findall(r"\d+", str(error).split(f"set {key} to ")[1].split(",")[0])]
            assert batch * factor % group_size != 0
            for size in suggested:
                batches.check_batch(run, values | {key: size})  # type: ignore[arg-type]
                assert size > 0
            legal = [size for size in range(1, max(suggested) + 1) if size * factor % group_size == 0]
            below, above = [size for size in legal if size < batch][-1:], [size for size in legal if size > batch][:1]
            assert suggested == below + above
        else:
            assert batch * factor % group_size == 0


class TestRewards:
    @pytest.mark.parametrize(
        ("reward_funcs", "parts"),
        [
            ("exact_mach", ["'exact_mach'", "did you mean 'exact_match'?", "path/to/file.py:function"]),
            ("missing.py:reward", ["'missing.py'", "does not exist"]),
            ("bad.py:nothing", ["nothing"]),
            ("bad.py:columns", ["'columns'", "'level'", "grpo_extra_columns"]),
            ("broken.py:reward", ["broken.py", "SyntaxError"]),
            ("exact_match,exact_match", ["exact_match"]),
            (["exact_match", 5], ["'5'"]),
        ],
    )
    def test_refused(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, reward_funcs: Any, parts: list[str]
    ) -> None:
        monkeypatch.chdir(workspace.folder)
        code = "def columns(completions, level, **kwargs):\n    return [0.0] * len(completions)\n"
        (workspace.folder / "bad.py").write_text(code, encoding="utf-8")
        (workspace.folder / "broken.py").write_text("def reward(:", encoding="utf-8")
        sentence = refused(workspace, *parts, reward_funcs=reward_funcs)
        assert sentence.startswith("reward_funcs: ")

    @pytest.mark.parametrize(
        ("funcs", "weights", "parts"),
        [
            ("exact_match", "1,2", ["2 weights", "1 reward functions"]),
            ("exact_match,gsm8k_number", "1", ["1 weights", "2 reward functions"]),
            (None, [1, 2], ["2 weights", "1 reward functions"]),
        ],
    )
    def test_a_wrong_number_of_weights(self, workspace: Workspace, funcs: Any, weights: Any, parts: list[str]) -> None:
        sentence = refused(workspace, *parts, reward_funcs=funcs, reward_weights=weights)
        assert sentence.startswith("reward_weights: ")

    def test_ground_truth_that_the_built_in_cannot_read(self, workspace: Workspace) -> None:
        sentence = workspace.refused(reward_funcs="gsm8k_number")
        assert sentence.startswith("reward_funcs: gsm8k_number on train_dataset") and "holds no number" in sentence

    def test_no_ground_truth_and_no_reward(self, workspace: Workspace) -> None:
        write_dataset(workspace.data, "bare", [{"instruction": row["instruction"]} for row in QUESTIONS])
        refused(workspace, "reward_funcs: none is named", "path/to/file.py:function", dataset="bare")
        refused(workspace, "reward_funcs: ", "'solution'", dataset="bare", reward_funcs="exact_match")

    @pytest.mark.parametrize("reward_funcs", [None, "exact_match"])
    @pytest.mark.parametrize("missing", [None, ""])
    def test_ground_truth_that_is_missing_in_some_rows(
        self, workspace: Workspace, reward_funcs: Any, missing: Any
    ) -> None:
        rows = [*QUESTIONS[:7], {**QUESTIONS[7], "output": missing}]
        write_dataset(workspace.data, "gaps", rows)
        refused(workspace, "exact_match", "'solution'", "1 of 8 rows", dataset="gaps", reward_funcs=reward_funcs)


class TestDatasets:
    def test_a_missing_column(self, workspace: Workspace) -> None:
        rows = [{"question": row["instruction"], "output": row["output"]} for row in QUESTIONS]
        write_dataset(workspace.data, "other", rows)
        sentence = refused(workspace, "no column 'instruction'", "question, output", '"columns"', dataset="other")
        assert "input" not in sentence.split("it has")[1]
        columns = {"prompt": "questoin", "response": "output"}
        write_dataset(workspace.data, "typo", rows, columns=columns)
        refused(workspace, "'questoin'", "did you mean 'question'?", dataset="typo")
        columns = {"prompt": "question", "response": "output", "extra": ["levle"]}
        write_dataset(workspace.data, "extra", [row | {"level": 1} for row in rows], columns=columns)
        refused(workspace, "'levle'", "did you mean 'level'?", dataset="extra")

    def test_a_missing_extra_column(self, workspace: Workspace) -> None:
        refused(workspace, "no column 'levl'", "grpo_extra_columns", grpo_extra_columns="levl")
        refused(workspace, "'levl'", grpo_extra_columns="levl", preprocessing_num_workers=2)

    @pytest.mark.parametrize(
        "name", ["prompt", "completions", "completion_ids", "trainer_state", "log_metric", "images", "tools"]
    )
    def test_a_reserved_extra_column(self, workspace: Workspace, name: str) -> None:
        write_dataset(workspace.data, "taken", [row | {name: "x"} for row in QUESTIONS])
        refused(workspace, "grpo_extra_columns", name, "rename", dataset="taken", grpo_extra_columns=name)
        columns = {"prompt": "instruction", "extra": [name]}
        write_dataset(workspace.data, "taken", [row | {name: "x"} for row in QUESTIONS], columns=columns)
        refused(workspace, name, "rename", dataset="taken")

    def test_every_argument_that_trl_passes_is_reserved(self) -> None:
        from llamafactory_plugin.dataset_info import RESERVED_COLUMNS
        from trl_grpo_ext.rewards.columns import TRL_KEYWORDS

        assert TRL_KEYWORDS | {"prompt", "completion"} <= RESERVED_COLUMNS

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ('{"words": ', ["dataset_dir: ", "not valid JSON", "correct the file"]),
            ("[]", ["dataset_dir: ", "one JSON object"]),
            ("{}", ["dataset: 'words' is not in "]),
            ('{"wrods": {"file_name": "words.json"}}', ["'words' is not in", "did you mean 'wrods'?"]),
            ('{"words": "words.json"}', ["'words'", "file_name", "'words.json'"]),
            ('{"words": null}', ["'words'", "file_name"]),
            ('{"words": {}}', ["'words'", "has no file_name"]),
            ('{"words": {"file_name": 5}}', ["'words'", "has no file_name"]),
            ('{"words": {"file_name": "nope.json"}}', ["'words'", "nope.json", "does not exist"]),
            ('{"words": {"file_name": "words.json", "formatting": "alpca"}}', ["'alpca'", "did you mean 'alpaca'?"]),
            ('{"words": {"file_name": "words.json", "columns": "instruction"}}', ["columns", "'instruction'"]),
            ('{"words": {"file_name": "words.json", "columns": {"prompt": ["a"]}}}', ["columns", "'prompt'", "['a']"]),
            ('{"words": {"file_name": "words.json", "columns": {"promt": "a"}}}', ["words names no prompt"]),
            ('{"words": {"file_name": "words.json", "tags": ["a"]}}', ["tags", "['a']"]),
            ('{"words": {"file_name": "words.json", "ranking": true}}', ["names no chosen and no rejected"]),
            (
                '{"words": {"file_name": "words.json", "columns": {"prompt": "instruction", "extra": "level"}}}',
                ['"extra" of words', "must be a list", "'level'"],
            ),
            (
                '{"words": {"file_name": "words.json", "columns": {"prompt": "instruction", "extra": [5]}}}',
                ['"extra" of words', "[5]"],
            ),
            (
                '{"words": {"file_name": "words.json", "formatting": "openai", "columns": {"prompt": "instruction"}}}',
                ["words names no messages"],
            ),
            ('{"words": {"file_name": "words.json", "formatting": "sharegpt"}}', ["no column 'conversations'"]),
            ('{"words": {"file_name": "words.json", "split": "trian"}}', ["words.json", '"trian"', "check"]),
        ],
    )
    def test_a_malformed_dataset_info(self, workspace: Workspace, text: str, parts: list[str]) -> None:
        (workspace.data / "dataset_info.json").write_text(text, encoding="utf-8")
        refused(workspace, *parts)

    def test_a_missing_dataset_info(self, workspace: Workspace) -> None:
        refused(workspace, "dataset_dir: cannot read", "nowhere", dataset_dir=str(workspace.folder / "nowhere"))

    def test_an_unknown_dataset(self, workspace: Workspace) -> None:
        refused(workspace, "dataset: 'wrds' is not in", "did you mean 'words'?", dataset="wrds")
        refused(workspace, "'wrds' is not in", eval_dataset="wrds", do_eval=True)

    @pytest.mark.parametrize("text", ["[]", "", "[{", '{"instruction": ['])
    def test_an_empty_or_broken_file(self, workspace: Workspace, text: str) -> None:
        (workspace.data / "words.json").write_text(text, encoding="utf-8")
        refused(workspace, "dataset: words.json", "check that it has rows")

    def test_no_rows(self, workspace: Workspace) -> None:
        refused(workspace, "dataset: words.json has no rows", "max_samples", max_samples=0)

    @pytest.mark.parametrize("column", ["instruction", "output"])
    def test_numbers_where_texts_belong(self, workspace: Workspace, column: str) -> None:
        write_dataset(workspace.data, "numbers", [row | {column: 18} for row in QUESTIONS])
        refused(workspace, f"column {column!r} of numbers.json", "18", '"extra"', dataset="numbers")

    def test_rows_of_another_format(self, workspace: Workspace) -> None:
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        write_dataset(workspace.data, "chat", [{"conversations": messages}] * 8, formatting="sharegpt")
        refused(workspace, "chat.json", "format sharegpt", "'from'", "tags", dataset="chat")

    def test_an_extra_column_of_two_types(self, workspace: Workspace) -> None:
        columns = {"prompt": "instruction", "response": "output", "extra": ["level"]}
        write_dataset(workspace.data, "a", [row | {"level": 1} for row in QUESTIONS], columns=columns)
        write_dataset(workspace.data, "b", [row | {"level": "one"} for row in QUESTIONS], columns=columns)
        refused(workspace, "the extra column 'level' has different types", "write it with one type", dataset="a,b")

    def test_every_row_is_too_long(self, workspace: Workspace) -> None:
        refused(workspace, "every row of train_dataset was dropped", "16 of 16", "raise cutoff_len", cutoff_len=2)

    def test_every_row_is_malformed(self, workspace: Workspace) -> None:
        turns = [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}, {"from": "human", "value": "y"}]
        write_dataset(workspace.data, "chat", [{"conversations": turns}] * 8, formatting="sharegpt")
        refused(workspace, "every row of train_dataset was dropped", "8 malformed", dataset="chat")

    def test_fewer_prompts_than_one_generation_batch(self, workspace: Workspace) -> None:
        refused(workspace, "1 prompts are fewer than the 2", "per_device_train_batch_size", max_samples=1)
        given = {"grpo_config": {"generation_batch_size": 80}}
        refused(workspace, "16 prompts are fewer than the 20", **given)

    @pytest.mark.parametrize("column", ["images", "videos", "audios"])
    def test_media(self, workspace: Workspace, column: str) -> None:
        columns = {"prompt": "instruction", "response": "output", column: column}
        write_dataset(workspace.data, "media", [row | {column: ["a"]} for row in QUESTIONS], columns=columns)
        refused(workspace, f"media has {column}", "text only", dataset="media")

    def test_kto(self, workspace: Workspace) -> None:
        columns = {"prompt": "instruction", "response": "output", "kto_tag": "label"}
        write_dataset(workspace.data, "kto", [row | {"label": True} for row in QUESTIONS], columns=columns)
        refused(workspace, "kto is a kto set", "without kto_tag", dataset="kto")

    def test_the_tokenized_data_of_another_stage(self, workspace: Workspace) -> None:
        from datasets import Dataset, DatasetDict

        path = workspace.folder / "tokenized"
        DatasetDict({"train": Dataset.from_dict({"input_ids": [[1]], "labels": [[1]]})}).save_to_disk(path)
        refused(workspace, "tokenized_path", "another stage", "remove it", tokenized_path=str(path))


class TestErrors:
    def test_the_sentence_alone_is_shown_and_the_exit_code_is_not_zero(
        self, workspace: Workspace, model: Path
    ) -> None:
        result = workspace.cli(str(workspace.yaml(grpo_group_size=1)), check=False)
        assert result.returncode != 0
        assert "error: grpo_group_size must be a whole number of at least 2, not 1" in result.stderr
        assert "Traceback" not in result.stderr
        assert not workspace.output.exists()

    def test_every_other_exception_keeps_its_traceback(self) -> None:
        code = "from llamafactory_plugin.errors import *\nshow_usage_errors_in_one_line()\n"
        for raised, has_traceback in (("UsageError('a')", False), ("ValueError('a')", True), ("KeyError('a')", True)):
            result = subprocess.run([sys.executable, "-c", f"{code}raise {raised}"], capture_output=True, text=True)
            assert result.returncode == 1
            assert ("Traceback" in result.stderr) is has_traceback

    def test_the_hook_is_installed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        show_usage_errors_in_one_line()
        first = sys.excepthook
        show_usage_errors_in_one_line()
        assert sys.excepthook is first

    def test_it_crosses_processes(self) -> None:
        assert str(pickle.loads(pickle.dumps(UsageError("a sentence")))) == "a sentence"

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("exact_mach", "; did you mean 'exact_match'?"),
            ("EXACT_MATCH", "; did you mean 'exact_match'?"),
            ("zz", ""),
        ],
    )
    def test_nearest(self, name: str, expected: str) -> None:
        assert nearest(name, ["exact_match", "gsm8k_number"]) == expected

    def test_json_forms_agree(self, workspace: Workspace) -> None:
        mapping = {"deltaa": 4}
        assert refused(workspace, grpo_config=mapping) == refused(workspace, grpo_config=json.dumps(mapping))

"""From what the user writes to TRL's GRPOConfig, through LLaMA-Factory's own parser."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from llamafactory_plugin import arguments, config_mapping, experience, settings
from llamafactory_plugin.bitdelta_arguments import BitDeltaArguments
from llamafactory_plugin.evaluation_arguments import EvaluationArguments
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.prepared import Prepared, flags, prepare
from tests.llamafactory_plugin.tiny import questions, write_dataset
from trl_grpo_ext.presets import PRESETS

OWN_FIELDS = [item.name for item in dataclasses.fields(arguments.GRPOArguments)]


def config_of(workspace: Workspace, **overrides: Any) -> Any:
    return prepare(workspace.arguments(**overrides)).config


@pytest.fixture
def hparams_parser() -> Any:
    from llamafactory.hparams import parser

    return parser


class TestParser:
    def test_help_lists_the_stage_and_every_flag(
        self, hparams_parser: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            hparams_parser.get_train_args(["-h"])
        text = capsys.readouterr().out
        assert ended.value.code == 0
        assert "--stage {pt,sft,rm,ppo,dpo,kto,grpo}" in text
        for name in OWN_FIELDS:
            assert f"--{name}" in text
            assert name.replace("_", "-") in text

    def test_every_flag_has_its_help_text(self, hparams_parser: Any, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            hparams_parser.get_train_args(["-h"])
        text = " ".join(capsys.readouterr().out.split())
        for item in dataclasses.fields(arguments.GRPOArguments):
            assert " ".join(item.metadata["help"].split()[:6]) in text

    @pytest.mark.parametrize("name", ["_TRAIN_ARGS", "_INFER_ARGS", "_EVAL_ARGS"])
    def test_the_extended_class_stands_in_every_list(self, hparams_parser: Any, name: str) -> None:
        from llamafactory import hparams
        from llamafactory.hparams import finetuning_args

        extended = hparams.FinetuningArguments
        assert extended is finetuning_args.FinetuningArguments is hparams_parser.FinetuningArguments
        assert set(OWN_FIELDS) <= {item.name for item in dataclasses.fields(extended)}
        classes = getattr(hparams_parser, name)
        assert extended in classes
        assert [cls.__name__ for cls in classes].count("FinetuningArguments") == 1

    @pytest.mark.parametrize("name", ["_TRAIN_ARGS", "_INFER_ARGS", "_EVAL_ARGS"])
    def test_no_name_is_taken_by_another_class(self, hparams_parser: Any, name: str) -> None:
        from transformers import HfArgumentParser

        others = [cls for cls in getattr(hparams_parser, name) if cls is not hparams_parser.FinetuningArguments]
        taken = {item.name for cls in others for item in dataclasses.fields(cls)}
        ancestors = hparams_parser.FinetuningArguments.__mro__[1:]
        base = next(cls for cls in ancestors if cls.__module__.startswith("llamafactory."))
        inherited = {item.name for item in dataclasses.fields(base)}
        assert not taken & set(OWN_FIELDS)
        assert not inherited & set(OWN_FIELDS)
        HfArgumentParser(getattr(hparams_parser, name))  # argparse raises on a conflict

    def test_the_inference_parser_takes_a_training_yaml(self, hparams_parser: Any, workspace: Workspace) -> None:
        given = {"stage": "grpo", "grpo_beta": 0.1, "reward_funcs": "exact_match", "template": "qwen"}
        model = workspace.defaults["model_name_or_path"]
        finetuning = hparams_parser.get_infer_args({"model_name_or_path": model, **given})[2]
        assert (finetuning.stage, finetuning.grpo_beta) == ("grpo", 0.1)

    def test_the_evaluation_parser_still_defaults_to_sft(self, hparams_parser: Any, workspace: Workspace) -> None:
        given = {
            "model_name_or_path": workspace.defaults["model_name_or_path"],
            "template": "qwen",
            "task": "mmlu_test",
        }
        assert hparams_parser.get_eval_args(given)[3].stage == "sft"

    def test_defaults(self) -> None:
        from llamafactory.hparams import FinetuningArguments

        defaults = FinetuningArguments()
        assert defaults.stage == "sft"
        assert defaults.use_ref_model is False
        assert (defaults.grpo_group_size, defaults.grpo_clip_range, defaults.grpo_beta) == (8, 0.2, 0.0)
        assert (defaults.grpo_max_completion_length, defaults.grpo_scale_rewards) == (512, "group")
        assert FinetuningArguments(stage="dpo").use_ref_model is True

    def test_new_booleans_default_to_false(self) -> None:
        """LLaMA Board drops false when it saves a YAML."""
        fields = dataclasses.fields(arguments.GRPOArguments)
        assert [item.name for item in fields if item.type is bool and item.default is not False] == []

    @pytest.mark.parametrize("beta", [0.0, 0.04])
    def test_a_reference_model_only_with_a_kl_penalty(self, beta: float) -> None:
        from llamafactory.hparams import FinetuningArguments

        assert FinetuningArguments(stage="grpo", grpo_beta=beta).use_ref_model is (beta > 0)

    def test_instances_pickle(self) -> None:
        from llamafactory.hparams import FinetuningArguments

        original = FinetuningArguments(stage="grpo", grpo_beta=0.5, reward_funcs="a,b", grpo_config={"delta": 4.0})
        copy = pickle.loads(pickle.dumps(original))
        assert type(copy) is FinetuningArguments
        assert copy.to_dict() == original.to_dict()
        assert copy.to_dict()["grpo_config"] == {"delta": 4.0}

    def test_the_class_keeps_its_name(self) -> None:
        from llamafactory.hparams import FinetuningArguments

        assert FinetuningArguments.__module__ == "llamafactory.hparams.finetuning_args"
        assert FinetuningArguments.__qualname__ == "FinetuningArguments"
        assert get_args(get_type_hints(FinetuningArguments)["stage"])[-1] == "grpo"


class TestForms:
    """One run, written in the ways LLaMA-Factory offers."""

    @pytest.mark.parametrize(
        "form",
        [
            ["--grpo_beta", "0.1"],
            ["--grpo_beta=0.1"],
            ["--grpo-beta", "0.1"],
            ["--grpo-beta=0.1"],
            ["--grpo_be", "0.1"],
            ["--grpo_be=0.1"],
        ],
    )
    def test_flags(self, workspace: Workspace, form: list[str]) -> None:
        run = prepare([*flags(workspace.defaults), *form])
        assert run.config.beta == 0.1
        assert "grpo_beta" in run.run.explicit

    @pytest.mark.parametrize("form", [["--top-p", "0.7"], ["--top_p=0.7"], ["--top-p=0.7"]])
    def test_a_flag_equal_to_its_default_counts_as_set(self, workspace: Workspace, form: list[str]) -> None:
        assert prepare([*flags(workspace.defaults), *form]).config.top_p == 0.7

    def test_an_abbreviation_counts_as_set(self, workspace: Workspace) -> None:
        assert prepare([*flags(workspace.defaults), "--learning_r", "5e-5"]).config.learning_rate == 5e-5

    def test_a_negated_boolean_flag_is_known(self, workspace: Workspace) -> None:
        assert prepare([*flags(workspace.defaults), "--no_double_quantization"]).config.beta == 0.0

    @pytest.mark.parametrize("given", ["exact_match,gsm8k_number", "exact_match, gsm8k_number"])
    def test_lists_on_the_command_line(self, workspace: Workspace, given: str) -> None:
        add_numbers(workspace)
        argv = [*flags(workspace.defaults), "--reward_funcs", given, "--reward_weights", "1,0.5"]
        assert_two_rewards(prepare([*argv, "--dataset", "numbers", "--grpo_extra_columns", "level,kind"]))

    @pytest.mark.parametrize("separate", [",".join, ", ".join, list])
    def test_lists_in_yaml(self, workspace: Workspace, separate: Any) -> None:
        add_numbers(workspace)
        run = prepare(
            workspace.arguments(
                dataset="numbers",
                reward_funcs=separate(["exact_match", "gsm8k_number"]),
                reward_weights=[1, 0.5] if separate is list else separate(["1", "0.5"]),
                grpo_extra_columns=separate(["level", "kind"]),
            )
        )
        assert_two_rewards(run)

    def test_a_list_of_one_number(self, workspace: Workspace) -> None:
        assert config_of(workspace, reward_funcs="exact_match", reward_weights=2).reward_weights == [2.0]

    @pytest.mark.parametrize(
        "given", [{"delta": 4.0, "log_completions": True}, '{"delta":4.0,"log_completions":true}']
    )
    def test_grpo_config_as_mapping_and_as_json(self, workspace: Workspace, given: Any) -> None:
        config = config_of(workspace, grpo_config=given)
        assert (config.delta, config.log_completions) == (4.0, True)

    def test_grpo_config_as_a_flag(self, workspace: Workspace) -> None:
        assert prepare([*flags(workspace.defaults), "--grpo_config", '{"delta":4}']).config.delta == 4

    def test_yaml_with_overrides(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        path = workspace.yaml(grpo_beta=0.1)
        monkeypatch.setattr(
            sys, "argv", ["llamafactory-cli", str(path), "grpo_beta=0.2", "grpo_clip_range=1e-1", "top_p=0.7"]
        )
        config = prepare(None).config  # type: ignore[arg-type]
        assert (config.beta, config.epsilon, config.top_p) == (0.2, 0.1, 0.7)

    def test_reward_files_are_searched_beside_the_yaml_first(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        for folder, value in ((workspace.folder, 1.0), (elsewhere, 2.0)):
            code = f"def mine(completions, **kwargs):\n    return [{value}] * len(completions)\n"
            (folder / "mine.py").write_text(code, encoding="utf-8")
        path = workspace.yaml(reward_funcs="mine.py:mine")
        monkeypatch.chdir(elsewhere)
        monkeypatch.setattr(sys, "argv", ["llamafactory-cli", str(path)])
        assert prepare(None).rewards[0](completions=["x"]) == [1.0]  # type: ignore[arg-type]
        monkeypatch.setattr(sys, "argv", ["pytest"])
        assert prepare(workspace.arguments(reward_funcs="mine.py:mine")).rewards[0](completions=["x"]) == [2.0]


def add_numbers(workspace: Workspace) -> None:
    rows = [{"instruction": "1 + 1", "output": "2", "level": index, "kind": "sum"} for index in range(4)]
    write_dataset(workspace.data, "numbers", rows)


def assert_two_rewards(run: Prepared) -> None:
    assert [reward.__name__ for reward in run.rewards] == ["exact_match", "gsm8k_number"]
    assert run.config.reward_weights == [1.0, 0.5]
    assert {"level", "kind"} <= set(run.train.column_names)


class TestToTrl:
    @pytest.mark.parametrize(
        ("key", "value", "trl_name"),
        [
            ("grpo_group_size", 2, "num_generations"),
            ("grpo_beta", 0.3, "beta"),
            ("grpo_clip_range", 0.4, "epsilon"),
            ("grpo_clip_range_high", 0.5, "epsilon_high"),
            ("grpo_scale_rewards", "batch", "scale_rewards"),
            ("grpo_loss_type", "bnpo", "loss_type"),
            ("grpo_num_iterations", 3, "num_iterations"),
            ("grpo_max_completion_length", 17, "max_completion_length"),
            ("grpo_temperature", 0.6, "temperature"),
            ("grpo_eval_temperature", 0.6, "eval_temperature"),
        ],
    )
    def test_every_key_reaches_its_field(self, workspace: Workspace, key: str, value: Any, trl_name: str) -> None:
        default = config_of(workspace)
        config = config_of(workspace, **{key: value})
        assert getattr(config, trl_name) == value
        assert getattr(default, trl_name) != value

    def test_the_keys_above_are_all(self) -> None:
        untranslated = set(OWN_FIELDS) - set(config_mapping.NATIVE_NAMES)
        assert untranslated == {
            "grpo_normalize_advantages",
            "grpo_preset",
            "grpo_temperature",
            "reward_funcs",
            "reward_weights",
            "grpo_extra_columns",
            "grpo_reward_control",
            "grpo_reward_composition",
            "grpo_collapse_guard",
            "grpo_reward_timeout",
            "grpo_reward_errors",
            "grpo_reward_in_process",
            "grpo_reward_network",
            "grpo_config",
            "grpo_training_free",
            "grpo_training_free_config",
            *experience.OWN_KEYS,
            *BitDeltaArguments.__dataclass_fields__,
            *EvaluationArguments.__dataclass_fields__,
        }

    def test_use_vllm_reaches_its_field(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(settings, "check_vllm", lambda run: None)
        run = prepare(workspace.arguments(grpo_use_vllm=True))
        assert run.config.use_vllm is True
        assert set(run.config.generation_kwargs) == {"stop_token_ids"}

    @pytest.mark.parametrize("name", PRESETS)
    def test_presets(self, workspace: Workspace, name: str) -> None:
        config = config_of(workspace, grpo_preset=name)
        assert {option: getattr(config, option) for option in PRESETS[name]} == PRESETS[name]

    def test_a_key_beside_a_preset_wins_also_with_its_default_value(self, workspace: Workspace) -> None:
        config = config_of(workspace, grpo_preset="gspo", grpo_clip_range=0.2, grpo_scale_rewards="none")
        # The preset's upper clip range belongs to its lower one: without its own key it follows the one that was set.
        assert (config.epsilon, config.epsilon_high, config.scale_rewards) == (0.2, None, "none")

    def test_a_scale_beside_a_preset_wins_under_either_name(self, workspace: Workspace) -> None:
        config = config_of(workspace, grpo_preset="mc_grpo", grpo_scale_rewards="none")
        assert (config.scale_rewards, config.advantage_scale, config.advantage_baseline) == ("none", None, "median")
        config = config_of(workspace, grpo_preset="dr_grpo", grpo_config={"advantage_scale": "mad"})
        assert (config.scale_rewards, config.advantage_scale, config.loss_type) == ("group", "mad", "dr_grpo")

    def test_grpo_config_beside_a_preset_wins(self, workspace: Workspace) -> None:
        config = config_of(workspace, grpo_preset="gspo", grpo_config={"importance_sampling_level": "token"})
        assert config.importance_sampling_level == "token"

    @pytest.mark.parametrize(("given", "expected"), [(True, "group"), (False, "none")])
    def test_normalize_advantages_is_an_alias(self, workspace: Workspace, given: bool, expected: str) -> None:
        assert config_of(workspace, grpo_normalize_advantages=given).scale_rewards == expected
        argv = [*flags(workspace.defaults), "--grpo_normalize_advantages", str(given).lower()]
        assert prepare(argv).config.scale_rewards == expected

    def test_the_alias_wins_over_a_preset(self, workspace: Workspace) -> None:
        config = config_of(workspace, grpo_preset="dr_grpo", grpo_normalize_advantages=True)
        assert config.scale_rewards == "group"

    def test_the_alias_may_agree(self, workspace: Workspace) -> None:
        config = config_of(workspace, grpo_normalize_advantages=False, grpo_scale_rewards="none")
        assert config.scale_rewards == "none"

    def test_what_trl_would_do_by_itself_is_switched_off(self, workspace: Workspace) -> None:
        config = config_of(workspace)
        assert config.max_prompt_length is None
        assert config.remove_unused_columns is False
        assert config.disable_dropout is True

    @pytest.mark.parametrize("disable", [False, True])
    def test_disable_shuffling(self, workspace: Workspace, disable: bool) -> None:
        assert config_of(workspace, disable_shuffling=disable).shuffle_dataset is not disable

    def test_stop_tokens_and_generation_kwargs_meet(self, workspace: Workspace) -> None:
        kwargs = config_of(workspace, grpo_config={"generation_kwargs": {"min_new_tokens": 2}}).generation_kwargs
        assert kwargs["min_new_tokens"] == 2
        assert kwargs["eos_token_id"]


class TestDefaults:
    @pytest.mark.parametrize(
        ("finetuning_type", "expected"), [("full", 1e-6), ("freeze", 1e-6), ("lora", 1e-5), ("oft", 1e-5)]
    )
    def test_learning_rate(
        self, workspace: Workspace, log_lines: list[str], finetuning_type: str, expected: float
    ) -> None:
        assert config_of(workspace, finetuning_type=finetuning_type).learning_rate == expected
        assert any(f"learning_rate is not set: {expected}" in line for line in log_lines)

    @pytest.mark.parametrize("rate", [5e-5, 1e-3])
    def test_a_learning_rate_that_is_set_stays(self, workspace: Workspace, log_lines: list[str], rate: float) -> None:
        assert config_of(workspace, learning_rate=rate).learning_rate == rate
        assert not any("learning_rate is not set" in line for line in log_lines)

    def test_rollouts_sample_from_the_policy_itself(self, workspace: Workspace) -> None:
        config = config_of(workspace)
        assert (config.temperature, config.top_p, config.top_k, config.repetition_penalty) == (1.0, 1.0, 0, 1.0)

    @pytest.mark.parametrize(
        ("key", "value"), [("temperature", 0.95), ("top_p", 0.7), ("top_k", 50), ("repetition_penalty", 1.2)]
    )
    def test_a_sampling_key_that_is_set_stays(self, workspace: Workspace, key: str, value: float) -> None:
        """0.95, 0.7 and 50 are LLaMA-Factory's defaults for chat: set, they are meant."""
        assert getattr(config_of(workspace, **{key: value}), key) == value

    def test_the_own_temperature_goes_before_the_shared_one(self, workspace: Workspace) -> None:
        assert config_of(workspace, temperature=0.5, grpo_temperature=0.8).temperature == 0.8

    def test_max_new_tokens_is_the_completion_length(self, workspace: Workspace) -> None:
        assert config_of(workspace, grpo_max_completion_length=None).max_completion_length == 512
        assert config_of(workspace, grpo_max_completion_length=None, max_new_tokens=33).max_completion_length == 33
        assert config_of(workspace, grpo_max_completion_length=33, max_new_tokens=33).max_completion_length == 33

    def test_the_best_model_has_the_best_reward(self, workspace: Workspace) -> None:
        best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}
        best |= {"save_steps": 1, "val_size": 4}
        config = config_of(workspace, **best)
        assert (config.metric_for_best_model, config.greater_is_better) == ("eval_reward", True)
        config = config_of(workspace, metric_for_best_model="eval_loss", **best)
        assert (config.metric_for_best_model, config.greater_is_better) == ("eval_loss", False)
        config = config_of(workspace, metric_for_best_model="eval_rewards/exact_match/mean", **best)
        assert config.metric_for_best_model == "eval_rewards/exact_match/mean"
        config = config_of(workspace, metric_for_best_model="eval_words_reward", **best)
        assert config.greater_is_better is True

    def test_early_stopping_watches_the_reward(self, workspace: Workspace) -> None:
        given = {"early_stopping_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "val_size": 4}
        config = config_of(workspace, **given)
        assert (config.metric_for_best_model, config.greater_is_better) == ("eval_reward", True)

    def test_an_evaluation_batch_that_is_not_set_holds_whole_groups(self, workspace: Workspace) -> None:
        given = {"grpo_group_size": 3, "per_device_train_batch_size": 6, "do_eval": True, "val_size": 4}
        assert config_of(workspace, **given).per_device_eval_batch_size == 3
        assert config_of(workspace, per_device_eval_batch_size=6, **given).per_device_eval_batch_size == 6

    def test_default_rewards(self, workspace: Workspace, log_lines: list[str]) -> None:
        assert [reward.__name__ for reward in prepare(workspace.arguments()).rewards] == ["exact_match"]
        assert any("reward_funcs is not set: exact_match" in line for line in log_lines)
        pairs = [{"instruction": row["instruction"], "good": row["output"], "bad": "no"} for row in questions(4)]
        columns = {"prompt": "instruction", "chosen": "good", "rejected": "bad"}
        write_dataset(workspace.data, "pairs", pairs, ranking=True, columns=columns)
        run = prepare(workspace.arguments(dataset="pairs"))
        assert [reward.__name__ for reward in run.rewards] == ["preference_overlap"]
        assert any("reward_funcs is not set: preference_overlap" in line for line in log_lines)

    def test_the_plan_is_announced(self, workspace: Workspace, log_lines: list[str]) -> None:
        prepare(workspace.arguments(gradient_accumulation_steps=2))
        assert any("4 prompts x 4 completions per step" in line for line in log_lines)


class TestSharedFields:
    def test_every_shared_field_is_copied(self, workspace: Workspace) -> None:
        """GRPOConfig has defaults of its own; LLaMA-Factory's values, set or not, must replace them."""
        from trl import GRPOConfig

        run = prepare(workspace.arguments(learning_rate=3e-4))
        names = {item.name for item in dataclasses.fields(GRPOConfig) if item.init}
        shared = names & {item.name for item in dataclasses.fields(run.run.training_args) if item.init}
        different = {
            name: (getattr(run.config, name), getattr(run.run.training_args, name))
            for name in shared
            if getattr(run.config, name) != getattr(run.run.training_args, name)
        }
        assert len(shared) > 100
        assert different == {}

    def test_unset_fields_keep_llamafactorys_defaults(self, workspace: Workspace) -> None:
        config = config_of(workspace, logging_steps=None)
        assert (config.bf16, config.logging_steps, config.gradient_checkpointing) == (False, 500, False)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("logging_steps", 7),
            ("lr_scheduler_type", "cosine"),
            ("warmup_steps", 5),
            ("seed", 123),
            ("max_grad_norm", 0.25),
            ("weight_decay", 0.02),
            ("save_total_limit", 3),
            ("num_train_epochs", 2.0),
            ("run_name", "mine"),
            ("gradient_accumulation_steps", 2),
        ],
    )
    def test_a_value_that_is_set_arrives(self, workspace: Workspace, key: str, value: Any) -> None:
        assert getattr(config_of(workspace, **{key: value}), key) == value


class TestRawArguments:
    def test_flags_are_read_as_argparse_reads_them(self) -> None:
        from llamafactory_plugin.raw_arguments import explicit_arguments

        known = frozenset(
            ["stage", "grpo_beta", "grpo_config", "reward_funcs", "do_train", "save_steps", "save_total"]
        )
        argv = ["--stage", "grpo", "--do-train", "--grpo-beta=0.1", "--reward_f", "a", "b", "--sav", "3"]
        assert explicit_arguments(argv, known) == {
            "stage": "grpo",
            "do_train": True,
            "grpo_beta": "0.1",
            "reward_funcs": "a b",
            "sav": "3",
        }

    def test_own_names(self) -> None:
        every_stage = [name for name in OWN_FIELDS if name.startswith("bitdelta")]
        assert len(every_stage) == 4 and not any(map(arguments.is_own_name, every_stage))
        assert all(arguments.is_own_name(name) for name in OWN_FIELDS if name not in every_stage)
        assert not any(arguments.is_own_name(name) for name in ("reward_model", "ref_model", "stage", "pref_beta"))

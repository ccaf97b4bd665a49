"""Every upstream symbol the plugin reaches for beyond public API: a new version fails here, by name."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

import pytest

from llamafactory_plugin import register

pytestmark = pytest.mark.line_a


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_patches_are_applied() -> None:
    import llamafactory.train.tuner  # noqa: F401

    # Where LLaMA Board was imported before, its patch is there too: tests/board.
    expected = dict.fromkeys(("patch_parser", "patch_tuner", "patch_constants"), "applied")
    assert register.status() == expected | dict.fromkeys(register.status(), "applied")


def test_dispatch_adds_the_callbacks_of_llamafactorys_own() -> None:
    from llamafactory.train import tuner

    from llamafactory_plugin import dispatch

    def appended(function: Any) -> list[str]:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        made = [
            node for node in calls if ast.unparse(node.func).endswith("Callback") or "swanlab" in ast.unparse(node)
        ]
        names = {ast.unparse(node.func).removeprefix("tuner.") for node in made}
        return sorted(name for name in names if name.endswith("Callback") or name == "get_swanlab_callback")

    theirs = appended(tuner._training_function.__wrapped__)
    assert theirs == appended(dispatch.llamafactory_callbacks)
    assert "ReporterCallback" in theirs and "LogCallback" in theirs
    assert parameters(tuner._training_function.__wrapped__) == ["config"]


@pytest.mark.parametrize("name", ["_TRAIN_ARGS", "_INFER_ARGS", "_EVAL_ARGS"])
def test_the_parsers_lists_hold_the_extended_class(name: str) -> None:
    from llamafactory.hparams import FinetuningArguments, parser

    assert FinetuningArguments in getattr(parser, name)
    assert "grpo_beta" in FinetuningArguments.__dataclass_fields__


def test_llamafactorys_data_functions_are_read_as_module_globals() -> None:
    from llamafactory.data import converter, loader

    merged = inspect.getsource(loader._get_merged_dataset)
    assert "get_dataset_list(" in merged
    assert "dataset_attr.ranking is True" in merged, "ranking sets pass because 1 is not True"
    assert "_get_dataset_processor(" in inspect.getsource(loader._get_preprocessed_dataset)
    assert "get_dataset_converter(" in inspect.getsource(converter.align_dataset)
    assert parameters(converter.get_dataset_converter) == ["name", "dataset_attr", "data_args"]
    assert "_load_single_dataset(" in merged
    expected_of_one = ["dataset_attr", "model_args", "data_args", "training_args"]
    assert parameters(loader._load_single_dataset) == expected_of_one
    expected = ["data_args", "stage", "template", "tokenizer", "processor", "do_generate"]
    assert parameters(loader._get_dataset_processor) == expected
    assert parameters(loader.get_dataset_list) == ["dataset_names", "dataset_dir"]


def test_llamafactorys_template_and_launcher() -> None:
    from llamafactory import launcher
    from llamafactory.data.template import Template

    assert parameters(Template.encode_oneturn) == ["self", "tokenizer", "messages", "system", "tools"]
    assert parameters(Template.get_stop_token_ids) == ["self", "tokenizer"]
    assert inspect.getsource(launcher.launch).count("file_name=__file__") == 2


def test_llamafactorys_trainer_functions() -> None:
    from llamafactory.train import trainer_utils

    assert parameters(trainer_utils.create_custom_optimizer) == ["model", "training_args", "finetuning_args"]
    assert parameters(trainer_utils.create_custom_scheduler) == ["training_args", "num_training_steps", "optimizer"]
    assert parameters(trainer_utils.create_ref_model)[:2] == ["model_args", "finetuning_args"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_generate_single_turn", ["self", "prompts", "images"]),
        ("_generate_and_score_completions", ["self", "inputs"]),
        ("_calculate_rewards", ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
        ("_compute_loss", ["self", "model", "inputs"]),
        ("log", ["self", "logs", "start_time"]),
    ],
)
def test_trl_methods_keep_their_arguments(name: str, expected: list[str]) -> None:
    from trl import GRPOTrainer

    assert parameters(getattr(GRPOTrainer, name)) == expected


def test_trl_reads_the_attributes_the_trainer_sets() -> None:
    from trl import GRPOTrainer

    def source(name: str) -> str:
        return inspect.getsource(getattr(GRPOTrainer, name))

    single_turn = source("_generate_single_turn")
    assert "self.processing_class(" in single_turn and "add_special_tokens=False" in single_turn
    assert "generation_config=self.generation_config" in single_turn
    assert "completion_ids == self.eos_token_id" in single_turn
    # vLLM colocate: what stands for a prompt's text is handed on as it is, so that it may be its token ids.
    assert "vllm_inputs = all_prompts_text" in single_turn and "all_prompts_text = prompts_text" in single_turn
    assert "SamplingParams(**generation_kwargs)" in single_turn
    assert "eos_and_pad = [self.eos_token_id, self.pad_token_id]" in source("_generate")
    assert "not in eos_and_pad" in source("_generate_and_score_completions")
    assert "self.current_gradient_accumulation_steps" in source("_compute_loss")
    assert "if self.beta != 0.0:" in source("_compute_loss")
    assert "generation_kwargs.update(args.generation_kwargs)" in source("__init__")
    assert "self._metrics[mode].clear()" in source("log")


def test_trl_and_accelerate_helpers_are_there() -> None:
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from trl.models.utils import prepare_deepspeed, prepare_fsdp
    from trl.trainer.callbacks import SyncRefModelCallback
    from trl.trainer.utils import disable_dropout_in_model

    assert parameters(prepare_deepspeed) == ["model", "accelerator"] == parameters(prepare_fsdp)
    assert parameters(fsdp2_prepare_model)[0] == "accelerator"
    assert parameters(SyncRefModelCallback) == ["ref_model", "accelerator"]
    assert parameters(disable_dropout_in_model) == ["model"]


def test_a_none_top_k_would_be_filled_in_by_transformers() -> None:
    """Why the rollouts' top_k is 0 and not None."""
    from transformers import GenerationConfig

    defaults = getattr(
        GenerationConfig(), "_get_default_generation_params", lambda: {"top_k": GenerationConfig().top_k}
    )
    assert defaults()["top_k"] == 50


def test_llama_board_lists_the_stage() -> None:
    from llamafactory.extras.constants import TRAINING_STAGES

    assert TRAINING_STAGES["GRPO"] == "grpo"

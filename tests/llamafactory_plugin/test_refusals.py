"""What stage grpo refuses: every entry of the two tables is triggered, and nothing that is at its default."""

from __future__ import annotations

import dataclasses
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from llamafactory_plugin import refusals, workflow
from llamafactory_plugin.errors import UsageError
from llamafactory_plugin.refusals import REFUSALS, UNREAD
from tests.llamafactory_plugin.conftest import Workspace
from tests.llamafactory_plugin.prepared import flags, prepare

# Start of the sentence -> the arguments of a real run that is refused with it.
BY_ARGUMENTS: dict[str, dict[str, Any]] = {
    "streaming": {"streaming": True},
    "packing": {"packing": True},
    "shift_attn": {"shift_attn": True},
    "use_hyper_parallel": {"use_hyper_parallel": True},
    "fp8": {"fp8": True},
    "neftune_noise_alpha": {"neftune_noise_alpha": 5.0},
    "auto_find_batch_size": {"auto_find_batch_size": True},
    "enable_jit_checkpoint": {"enable_jit_checkpoint": True},
    "do_predict": {"do_predict": True, "val_size": 4},
    "grpo_eval_metrics": {"grpo_eval_metrics": "exact_match"},
    "grpo_eval_samples": {"grpo_eval_samples": 2},
    "ref_model": {"ref_model": "elsewhere"},
    "ref_model_adapters": {"ref_model_adapters": "elsewhere", "grpo_beta": 0.1},
    "ref_model_quantization_bit": {"ref_model_quantization_bit": 4, "grpo_beta": 0.1},
    "grpo_config.sync_ref_model": {"grpo_config": {"sync_ref_model": True}, "grpo_beta": 0.1},
    "grpo_config.use_liger_loss": {"grpo_config": {"use_liger_loss": True}, "grpo_beta": 0.1},
    "grpo_config.use_transformers_paged": {"grpo_config": {"use_transformers_paged": True}},
    "reward_model": {"reward_model": "elsewhere"},
    "reward_model_type": {"reward_model_type": "full"},
    "reward_model_adapters": {"reward_model_adapters": "elsewhere"},
    "reward_model_quantization_bit": {"reward_model_quantization_bit": 4},
    "grpo_reward_timeout": {"grpo_reward_timeout": 5.0, "grpo_reward_in_process": True},
    "grpo_reward_network": {"grpo_reward_network": True, "grpo_reward_in_process": True},
    "disable_shuffling": {"disable_shuffling": True, "grpo_config": {"curriculum_column": "level"}},
    "grpo_reward_control": {"grpo_reward_control": "random", "reward_funcs": "self_certainty"},
    "grpo_collapse_guard": {
        "grpo_collapse_guard": {"truth": "exact_match", "canary_column": "known"},
        "reward_funcs": "self_certainty",
    },
    "do_sample": {"do_sample": False},
}
# LLaMA-Factory itself stops before these unless a package is installed, or a variable is set: set after its parser.
BY_ATTRIBUTES: dict[str, dict[str, dict[str, Any]]] = {
    "use_unsloth": {"model_args": {"use_unsloth": True}},
    "mixture_of_depths": {"model_args": {"mixture_of_depths": "convert"}},
    "use_kt": {"model_args": {"use_kt": True}},
    "USE_MCA": {"finetuning_args": {"use_mca": True}},
    "fsdp": {
        "training_args": {"fsdp": ["full_shard"]},
        "finetuning_args": {"reward_model": "elsewhere", "reward_model_type": "full"},
    },
    "sync_ref_model": {
        "training_args": {"fsdp": ["full_shard"]},
        "finetuning_args": {"grpo_config": {"sync_ref_model": True}, "grpo_beta": 0.1, "finetuning_type": "full"},
    },
    "use_cpu": {"training_args": {"fsdp": ["full_shard"], "use_cpu": True}},
    "pissa_init": {"finetuning_args": {"pissa_init": True, "grpo_beta": 0.1}},
}
# LLaMA-Factory's own errors for every stage but sft.
OTHERS_REFUSE = ("predict_with_generate", "neat_packing", "train_on_prompt", "mask_history")


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "load_model", lambda *_: pytest.fail("the model was loaded"))


def subject(sentence: str) -> str:
    """`"streaming: GRPO groups need ..."` -> `"streaming"`."""
    return sentence.split(":")[0].split(" ")[0]


class TestTable:
    def test_every_entry_has_a_test(self) -> None:
        assert sorted(subject(sentence) for _, sentence in REFUSALS) == sorted([*BY_ARGUMENTS, *BY_ATTRIBUTES])

    @pytest.mark.parametrize("name", BY_ARGUMENTS)
    def test_arguments(self, workspace: Workspace, name: str) -> None:
        sentence = workspace.refused(error=UsageError, **BY_ARGUMENTS[name])
        assert subject(sentence) == name

    @pytest.mark.parametrize("name", BY_ATTRIBUTES)
    def test_attributes(self, workspace: Workspace, name: str) -> None:
        run = prepare(workspace.arguments()).run
        for owner, values in BY_ATTRIBUTES[name].items():
            for attribute, value in values.items():
                setattr(getattr(run, owner), attribute, value)
        with pytest.raises(UsageError) as caught:
            refusals.refuse_unsupported(run)
        assert subject(str(caught.value)) == name

    @pytest.mark.parametrize("given", [{"grpo_preset": "reference_clip"}, {"grpo_config": {"clip_anchor": "both"}}])
    def test_pissa_beside_an_anchor_too(self, workspace: Workspace, given: dict[str, Any]) -> None:
        run = prepare(workspace.arguments(**given)).run
        run.finetuning_args.pissa_init = True
        with pytest.raises(UsageError, match="pissa_init with a reference"):
            refusals.refuse_unsupported(run)

    def test_every_sentence_names_a_way_out(self) -> None:
        for _, sentence in REFUSALS:
            assert sentence.endswith(".")
            assert any(word in sentence for word in ("set ", "remove", "unset")), sentence

    @pytest.mark.parametrize(
        "given",
        [
            {"pissa_init": True, "pissa_iter": -1},
            {"do_sample": True},
            {"streaming": False},
            {"grpo_config": {"sync_ref_model": True}, "grpo_beta": 0.1, "finetuning_type": "full"},
            {"ref_model": "elsewhere", "ref_model_adapters": "elsewhere", "grpo_beta": 0.1},
            {"ref_model": "elsewhere", "grpo_config": {"clip_anchor": "both"}},
            {"ref_model": "elsewhere", "grpo_preset": "reference_clip"},
            {"grpo_config": {"sync_ref_model": True, "clip_anchor": "reference"}, "finetuning_type": "full"},
        ],
        ids=str,
    )
    def test_what_works_is_not_refused(self, workspace: Workspace, given: dict[str, Any]) -> None:
        prepare(workspace.arguments(**given))

    @pytest.mark.parametrize("name", OTHERS_REFUSE)
    def test_llamafactory_refuses_the_rest(self, workspace: Workspace, name: str) -> None:
        given = {name: True, "val_size": 4}
        assert name in workspace.refused(**given)

    def test_ray(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        from llamafactory.train.tuner import _training_function

        monkeypatch.setenv("USE_RAY", "1")
        with pytest.raises(UsageError, match="USE_RAY"):
            _training_function({"args": workspace.arguments(), "callbacks": []})

    def test_ray_before_there_is_a_cluster(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("USE_RAY", "1")
        # Without the refusal LLaMA-Factory would come to `ray.init`.
        assert "Ray mode; unset it and use FORCE_TORCHRUN=1" in workspace.refused(UsageError)

    def test_ray_in_other_stages_is_llamafactorys(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []
        monkeypatch.setenv("USE_RAY", "1")
        from llamafactory_plugin.dispatch import ray_training_function

        config = {"args": {"stage": "sft"}, "callbacks": []}
        ray_training_function(lambda *given: asked.append(given), "ray_args", config)
        assert asked == [("ray_args", config)]


def train_fields() -> dict[str, tuple[Any, Any]]:
    """Every argument of `train` with its default and type."""
    from llamafactory.hparams import parser

    fields = {}
    for cls in parser._TRAIN_ARGS:
        hints = get_type_hints(cls)
        fields |= {item.name: (item.default, hints[item.name]) for item in dataclasses.fields(cls) if item.init}
    return fields


def another_value(default: Any, hint: Any) -> Any:
    """A value of the type that is not the default."""
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != default)
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if bool in kinds:
        return not default
    if int in kinds:
        return 4 if default != 4 else 5
    if float in kinds:
        return 0.25
    return "elsewhere"


FIELDS = train_fields()
# The table serves more versions of transformers than the installed one.
MATCHED = {key: [name for name in FIELDS if refusals._matches(name, key)] for key in UNREAD}
UNREAD_NAMES = sorted({name for names in MATCHED.values() for name in names})
SPECIAL_VALUES = {
    "train_sampling_strategy": "sequential",
    "vllm_config": "{}",
    "sglang_config": "{}",
    "dpo_label_smoothing": 0.1,
}


class TestUnread:
    def test_every_key_of_the_table_is_an_argument_somewhere(self) -> None:
        unmatched = [key for key, names in MATCHED.items() if not names]
        assert set(unmatched) <= {"group_by_length", "train_sampling_strategy", "asft_alpha", "eaft_alpha"}

    @pytest.mark.parametrize("name", UNREAD_NAMES)
    def test_refused(self, workspace: Workspace, name: str) -> None:
        default, hint = FIELDS[name]
        value = SPECIAL_VALUES.get(name, another_value(default, hint))
        assert value != default
        sentence = workspace.refused(error=UsageError, **{name: value})
        assert sentence.startswith(f"{name}: stage grpo does not read it: ")
        assert sentence.endswith("; remove it.")

    def test_a_flag_is_refused_too(self, workspace: Workspace) -> None:
        from llamafactory.train.tuner import run_exp

        with pytest.raises(UsageError, match="pref_beta: stage grpo does not read it"):
            run_exp([*flags(workspace.defaults), "--pref-beta", "0.3"])

    def test_defaults_are_not_refused(self, workspace: Workspace) -> None:
        """As in a YAML that LLaMA Board saved, which lists every key of its form."""
        prepare(workspace.defaults | {name: FIELDS[name][0] for name in UNREAD_NAMES})

    def test_a_prefix_is_not_more_than_a_prefix(self) -> None:
        assert refusals._matches("pref_beta", "pref_*")
        assert not refusals._matches("beta_pref_", "pref_*")
        assert not refusals._matches("max_length_x", "max_length")

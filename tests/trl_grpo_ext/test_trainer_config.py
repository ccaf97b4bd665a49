"""ExtendedGRPOConfig: what it accepts, what it refuses, and that it survives a dict."""

import dataclasses
import json
import warnings

import pytest
from transformers import HfArgumentParser

from trl_grpo_ext import ExtendedGRPOConfig, config_kwargs, import_trl
from trl_grpo_ext.losses import LossConfig
from trl_grpo_ext.presets import PRESETS

CPU = {"use_cpu": True, "bf16": False, "num_generations": 4, "per_device_train_batch_size": 8, "report_to": []}


def config(**settings):
    return ExtendedGRPOConfig(output_dir="out", **CPU | settings)


def test_the_defaults_are_those_of_trl():
    ours, theirs = config(), import_trl().GRPOConfig(output_dir="out", **CPU)
    for item in dataclasses.fields(theirs):
        if item.name not in ("logging_dir", "accelerator_config", "lr_scheduler_kwargs"):
            assert str(getattr(ours, item.name)) == str(getattr(theirs, item.name)), item.name
    assert not ours.uses_extended_loss and not ours.uses_extended_advantages and not ours.needs_reference
    assert ours.changed(tuple(item.name for item in dataclasses.fields(LossConfig) if hasattr(ours, item.name))) == []


def test_every_option_has_a_help_text():
    theirs = {item.name for item in dataclasses.fields(import_trl().GRPOConfig)}
    ours = [item for item in dataclasses.fields(ExtendedGRPOConfig) if item.name not in theirs]
    assert len(ours) > 30
    assert all(item.metadata["help"].endswith(".") for item in ours)


def test_round_trip_through_a_dict_without_a_warning():
    settings = {"clip_anchor": "reference", "curriculum_column": "level", "curriculum_band": [0.2, 0.8]}
    one = config(advantage_baseline="median", gradient_accumulation_steps=2, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        two = ExtendedGRPOConfig.from_dict(one.to_dict())
    assert two.to_dict() == one.to_dict()
    assert json.loads(one.to_json_string()) == json.loads(two.to_json_string())
    assert (two.clip_anchor, two.curriculum_band, two.generation_batch_size) == ("reference", [0.2, 0.8], 16)


def test_a_dict_with_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no field 'clip_ancor'"):
        ExtendedGRPOConfig.from_dict({"output_dir": "out", "clip_ancor": "old"})


def test_the_plain_config_of_trl_is_taken_as_it_is():
    plain = import_trl().GRPOConfig(output_dir="out", beta=0.1, **CPU)
    ours = ExtendedGRPOConfig.from_grpo_config(plain)
    assert type(plain) is import_trl().GRPOConfig
    assert (ours.beta, ours.clip_kind, ours.needs_reference) == (0.1, "hard", True)
    assert ExtendedGRPOConfig.from_grpo_config(ours) is ours


def test_options_can_be_given_on_a_command_line():
    line = "--output_dir out --use_cpu --bf16 false --num_generations 4 --clip_anchor both --curriculum_column level"
    line += " --curriculum_band 0.1 0.9 --group_filter shortest --group_filter_keep 2 --eval_temperature 0"
    (parsed,) = HfArgumentParser(ExtendedGRPOConfig).parse_args_into_dataclasses(line.split())
    assert (parsed.clip_anchor, parsed.solve_rate_band, parsed.eval_temperature) == ("both", (0.1, 0.9), 0.0)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_config(name):
    made = ExtendedGRPOConfig.from_preset(name, output_dir="out", **CPU)
    made.loss_config()
    assert made.advantage_config().num_generations == 4
    assert made.uses_extended_loss == (name in ("gmpo", "rloo", "reference_clip"))
    assert made.uses_extended_advantages == (name in ("mc_grpo", "rloo", "normalized_clip"))


def test_what_is_given_beside_a_preset_wins():
    assert ExtendedGRPOConfig.from_preset("dapo", output_dir="out", epsilon_high=0.4, **CPU).epsilon_high == 0.4


REFUSED = [
    ({"loss_backend": "ours"}, "loss_backend must be one of auto, extended, not 'ours'"),
    ({"clip_kind": "sof"}, "clip_kind must be one of .* not 'sof'"),
    ({"clip_kind": "dual"}, "needs a delta above"),
    ({"soft_temperature_positive": 2.0}, "soft_temperature_positive=2.0 does nothing with clip_kind='hard'"),
    ({"cov_fraction": 0.1, "clip_kind": "soft"}, "cov_fraction=0.1 does nothing with clip_kind='soft'"),
    ({"clip_final_factor": 0.5}, "clip_final_factor=0.5 does nothing with clip_schedule='constant'"),
    ({"clip_schedule": "linear"}, "clip_schedule='linear' needs clip_final_factor"),
    ({"clip_schedule": "linear", "clip_final_factor": 0.5, "clip_kind": "none"}, "does nothing with clip_kind 'none'"),
    ({"kl_estimator": "k1"}, "kl_estimator='k1' does nothing with beta=0.0"),
    ({"kl_place": "reward"}, "kl_place='reward' does nothing with beta=0.0"),
    ({"kl_target": 0.1}, "kl_target=0.1 does nothing with beta=0.0"),
    ({"loss_fn": "math:nothing"}, "loss_fn='math:nothing' can't be imported"),
    ({"loss_fn": "math.pi"}, 'loss_fn must look like "package.module:function"'),
    ({"loss_fn": "math:pi"}, "must be a function, not a float"),
    ({"loss_fn": "math:sqrt", "clip_kind": "none"}, "clip_kind does nothing with loss_fn='math:sqrt'"),
    ({"loss_type": "cispo", "clip_anchor": "both"}, "loss_type must be one of .* not 'cispo'"),
    ({"importance_sampling_level": "geometric", "delta": 4.0}, "cannot combine with delta"),
    ({"loss_type": "token_mean", "gradient_accumulation_steps": 4, "steps_per_generation": 2}, "must be a multiple"),
    ({"advantage_scale": "mad", "scale_rewards": "none"}, "say two things"),
    ({"advantage_floor": -1.0}, "advantage_floor|floor"),
    ({"zero_variance_groups": "skip"}, "zero_variance_groups must be one of keep, keep_for_normaliser, drop"),
    ({"zero_variance_groups": "keep_for_normaliser", "loss_type": "bnpo"}, "no normaliser to stay in"),
    ({"dynamic_sampling_rounds": -1}, "dynamic_sampling_rounds must be a whole number"),
    ({"group_filter": "shortest"}, "work together"),
    ({"group_filter": "shortest", "group_filter_keep": 4}, "from 2 to num_generations - 1"),
    ({"group_filter": "longest", "group_filter_keep": 2}, "group_filter must be one of"),
    ({"curriculum_band": [0.2, 0.8]}, "does nothing without curriculum_column"),
    ({"curriculum_column": "level", "curriculum_band": [0.8, 0.2]}, "0 <= low < high <= 1"),
    ({"eval_temperature": -1.0}, "eval_temperature must be a finite number at least 0"),
    ({"eval_temperature": 0.5, "use_vllm": True}, "does nothing with use_vllm"),
]


@pytest.mark.parametrize("settings, sentence", REFUSED, ids=[" ".join(settings) for settings, _ in REFUSED])
def test_what_can_not_work_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        config(**settings)


@pytest.mark.line_b
@pytest.mark.parametrize("option", [{"entropy_coef": 0.1}, {"off_policy_mask_threshold": 0.5}], ids=str)
def test_options_of_trl_that_our_loss_does_not_read_are_refused(option):
    with pytest.raises(
        ValueError, match=f"{next(iter(option))}=.* does not work with ours, which clip_anchor asks for"
    ):
        config(clip_anchor="both", **config_kwargs(**option))


@pytest.mark.line_b
def test_rewards_that_are_normalised_one_by_one_are_refused():
    with pytest.raises(ValueError, match="advantage_clip needs the sum of the rewards"):
        config(advantage_clip=1.0, multi_objective_aggregation="normalize_then_sum")

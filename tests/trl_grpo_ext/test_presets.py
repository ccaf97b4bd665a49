"""Presets: names, what they set, and that they do what their papers say."""

import math
from dataclasses import fields

import pytest
import torch

from trl_grpo_ext import ExtendedGRPOConfig
from trl_grpo_ext._compat import grpo_config_fields
from trl_grpo_ext.advantages import AdvantageConfig, group_advantages
from trl_grpo_ext.losses import LossConfig, LossInputs, policy_loss
from trl_grpo_ext.presets import PRESETS, preset

LOSS_OPTIONS = {item.name for item in fields(LossConfig)}
ADVANTAGE_OPTIONS = {f"advantage_{item.name}" for item in fields(AdvantageConfig)} - {"advantage_num_generations"}
SCALES = {"group": "std", "batch": "batch", "none": "none"}


def loss_config(name):
    return LossConfig(**{key: value for key, value in PRESETS[name].items() if key in LOSS_OPTIONS})


def advantages(name, rewards):
    options = {
        key.removeprefix("advantage_"): value for key, value in PRESETS[name].items() if key in ADVANTAGE_OPTIONS
    }
    options.setdefault("scale", SCALES[PRESETS[name].get("scale_rewards", "group")])
    return group_advantages(torch.tensor(rewards), AdvantageConfig(num_generations=len(rewards), **options)).tolist()


def gradient(name, logps, values, **changes):
    mask = torch.ones_like(logps)
    inputs = LossInputs(logps, torch.tensor(values), mask, max_completion_length=8, num_items=1.0, **changes)
    return torch.autograd.grad(policy_loss(inputs, loss_config(name)).loss, logps)[0]


@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_is_an_option_and_they_combine(name):
    assert set(PRESETS[name]) <= LOSS_OPTIONS | ADVANTAGE_OPTIONS | set(grpo_config_fields()) | {"scale_rewards"}
    loss_config(name)
    assert len(advantages(name, [1.0, 0.0, 0.5])) == 3


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_config_of_the_trainer(name, tmp_path):
    options = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "num_generations": 5}
    config = ExtendedGRPOConfig.from_preset(name, **options, per_device_train_batch_size=5)
    assert {key: getattr(config, key) for key in PRESETS[name]} == dict(PRESETS[name])
    for key, value in vars(loss_config(name)).items():
        if key not in ("cov_seed", "use_bias_correction_kl", "loss_type", "epsilon", "epsilon_high"):
            assert getattr(config.loss_config(), key) == value


def test_names():
    own_of_trl = {"trl", "grpo", "bnpo", "dr_grpo", "dapo", "gspo"}
    assert set(PRESETS) == own_of_trl | {"gmpo", "mc_grpo", "rloo", "normalized_clip", "reference_clip"}


def test_a_preset_is_a_copy_and_the_table_is_read_only():
    settings = preset("grpo")
    settings["loss_type"] = "changed"
    assert preset("grpo")["loss_type"] == "grpo"
    with pytest.raises(TypeError):
        PRESETS["grpo"]["loss_type"] = "changed"  # type: ignore[index]


def test_unknown_name():
    with pytest.raises(ValueError, match=r"preset must be one of trl, grpo, .*, not 'gsop', did you mean 'gspo'"):
        preset("gsop")


def test_same_values_under_the_names_of_the_command_line():
    plugin = pytest.importorskip("llamafactory_plugin.arguments")
    for name, settings in plugin.PRESETS.items():
        assert dict(settings) == preset(name)


def test_normalized_clip_divides_by_the_population_standard_deviation():
    assert advantages("normalized_clip", [2.0, 0.0, 2.0, 0.0]) == pytest.approx([1, -1, 1, -1])
    assert advantages("grpo", [2.0, 0.0, 2.0, 0.0])[0] == pytest.approx(math.sqrt(3) / 2, rel=1e-3)


def test_reference_clip_centres_and_is_clipped_against_the_reference():
    assert advantages("reference_clip", [1.0, 0.0, 1.0, 0.0, 1.0]) == pytest.approx([0.4, -0.6, 0.4, -0.6, 0.4])
    ratios = torch.tensor([[1.0], [1.5], [0.5], [1.5]])
    logps = torch.zeros(4, 1, requires_grad=True)
    found = gradient("reference_clip", logps, [0.4, 0.4, -0.6, -0.6], ref_logps=-ratios.log())
    # loss = -mean_i min(ratio A, clip(ratio, 0.8, 1.2) A)
    assert found[:, 0].tolist() == pytest.approx([-0.4 / 4, 0.0, 0.0, 0.6 * 1.5 / 4])


def test_mc_grpo_centres_on_the_median_and_leaves_out_the_pivot():
    found = advantages("mc_grpo", [0.0, 0.25, 1.0])
    assert found == pytest.approx([-0.25 / 0.251, 0.0, 0.75 / 0.251])
    logps = torch.zeros(3, 4, requires_grad=True)
    assert (gradient("mc_grpo", logps, found).abs().sum(1) > 0).tolist() == [True, False, True]


def test_rloo_is_reinforce_with_the_mean_of_the_others():
    found = advantages("rloo", [3.0, 1.0, 2.0])
    assert found == pytest.approx([1.5, -1.5, 0.0])
    logps = torch.zeros(3, 4, requires_grad=True)
    reinforce = -(torch.tensor(found) * logps.sum(1)).mean() / 8
    torch.testing.assert_close(gradient("rloo", logps, found), torch.autograd.grad(reinforce, logps)[0])


def test_dapo_clips_higher():
    logps = torch.zeros(2, 1, requires_grad=True)
    old = -torch.tensor([[1.25], [1.3]]).log()
    assert (gradient("dapo", logps, [1.0, 1.0], old_logps=old) != 0)[:, 0].tolist() == [True, False]
    assert not gradient("trl", logps, [1.0, 1.0], old_logps=old).any()


def test_gmpo_clips_in_log_space():
    logps = torch.zeros(2, 2, requires_grad=True)
    old = torch.tensor([[-0.39, 0.0], [-0.41, 0.0]])
    assert (gradient("gmpo", logps, [1.0, 1.0], old_logps=old)[:, 0] != 0).tolist() == [True, False]


def test_gspo_clips_whole_sequences():
    logps = torch.zeros(2, 2, requires_grad=True)
    # The mean log ratio is 3e-4 in the first row and 5e-4 in the second, past the range of 4e-4.
    old = torch.tensor([[-0.1, 0.1 - 6e-4], [-0.1, 0.1 - 1e-3]])
    assert (gradient("gspo", logps, [1.0, 1.0], old_logps=old) != 0).all(1).tolist() == [True, False]

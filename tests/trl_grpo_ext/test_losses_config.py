"""What the loss options refuse, and in which words."""

import pytest
import torch

from trl_grpo_ext.losses import LossConfig, LossInputs, LossOutputs, policy_loss


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_type": "cispo"}, "loss_type must be one of grpo, bnpo, dr_grpo, dapo, token_mean, not 'cispo'"),
        ({"clip_kind": "harf"}, "did you mean 'hard'"),
        ({"clip_anchor": "ref"}, "clip_anchor must be one of old, reference, both"),
        ({"importance_sampling_level": "seq"}, "importance_sampling_level must be one of"),
        ({"kl_estimator": "k4"}, "kl_estimator must be one of k1, k2, k3"),
        ({"kl_place": "nowhere"}, "kl_place must be one of loss, reward"),
        ({"epsilon": -0.1}, "epsilon must be a finite number at least 0, not -0.1"),
        ({"epsilon": float("nan")}, "epsilon must be a finite number at least 0, not nan"),
        ({"epsilon_high": float("inf")}, "epsilon_high must be a finite number"),
        ({"epsilon": "0.2"}, "epsilon must be a finite number at least 0, not '0.2'"),
        ({"beta": -1.0}, "beta must be"),
        ({"delta": 0.0}, "delta must be a finite number above 0"),
        ({"soft_temperature_positive": 0.0}, "soft_temperature_positive must be a finite number above 0"),
        ({"soft_temperature_negative": -1.0}, "soft_temperature_negative must be"),
        ({"cov_fraction": 0.0}, "cov_fraction must be a finite number above 0 and at most 1"),
        ({"cov_fraction": 1.5}, "cov_fraction must be a finite number above 0 and at most 1"),
        ({"cov_kl_coef": -1.0}, "cov_kl_coef must be"),
        ({"cov_low": 5.0}, r"cov_low must be below cov_high \(5.0\), not 5.0"),
        ({"clip_kind": "asymmetric"}, "needs epsilon_high"),
        ({"clip_kind": "dual"}, r"needs a delta above 1 \+ the upper clip range \(1.2\), not None"),
        ({"clip_kind": "dual", "delta": 1.28, "epsilon_high": 0.28}, "needs a delta above"),
        ({"clip_kind": "soft", "delta": 2.0}, "delta does nothing with clip_kind 'soft'"),
        ({"clip_kind": "none", "delta": 2.0}, "delta does nothing with clip_kind 'none'"),
        ({"clip_kind": "clip_cov", "delta": 2.0}, "delta does nothing with clip_kind 'clip_cov'"),
        ({"clip_kind": "soft", "importance_sampling_level": "geometric"}, "cannot combine with clip_kind 'soft'"),
        ({"delta": 2.0, "importance_sampling_level": "geometric"}, "cannot combine with delta 2.0"),
        ({"clip_kind": "kl_cov", "importance_sampling_level": "sequence"}, "needs importance_sampling_level 'token'"),
        ({"clip_kind": "clip_cov", "clip_anchor": "both"}, "and clip_anchor 'old', not 'token' and 'both'"),
    ],
)
def test_refused(options, words):
    with pytest.raises(ValueError, match=words):
        LossConfig(**options)


def test_upper_range_is_the_lower_one_unless_given():
    assert LossConfig(epsilon=0.3).epsilon_upper == 0.3
    assert LossConfig(epsilon=0.3, epsilon_high=0.0).epsilon_upper == 0.0


@pytest.mark.parametrize(
    ("options", "needed", "in_loss"),
    [
        ({}, False, False),
        ({"beta": 0.1}, True, True),
        ({"beta": 0.1, "kl_place": "reward"}, True, False),
        ({"clip_anchor": "reference"}, True, False),
        ({"clip_anchor": "both", "beta": 0.1}, True, True),
    ],
)
def test_need_of_the_reference(options, needed, in_loss):
    config = LossConfig(**options)
    assert (config.needs_reference, config.kl_in_loss) == (needed, in_loss)


def inputs(**changes):
    return LossInputs(**{"logps": torch.zeros(2, 3), "advantages": torch.ones(2), "mask": torch.ones(2, 3)} | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logps": torch.zeros(3)}, r"logps must have the shape \(B, T\), not \(3,\)"),
        ({"mask": torch.ones(2, 4)}, r"mask must have the shape \(2, 3\) to fit logps, not \(2, 4\)"),
        ({"old_logps": torch.ones(3, 3)}, "old_logps must have the shape"),
        ({"ref_logps": torch.ones(3, 3)}, "ref_logps must have the shape"),
        ({"entropies": torch.ones(2)}, "entropies must have the shape"),
        ({"entropy_mask": torch.ones(2)}, "entropy_mask must have the shape"),
        ({"importance_weights": torch.ones(2)}, r"importance_weights must have the shape \(2, 3\) or \(2, 1\)"),
        ({"advantages": torch.ones(3)}, r"advantages must have the shape \(2,\) or \(2, 1\) or \(2, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        inputs(**changes)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({}, {"loss_type": "dapo"}, "loss_type 'dapo' divides by LossInputs.num_items"),
        ({}, {"loss_type": "dr_grpo"}, "divides by LossInputs.max_completion_length"),
        ({}, {"loss_type": "token_mean"}, "divides by LossInputs.window_tokens"),
        ({}, {"loss_type": "grpo", "beta": 0.1}, "beta 0.1 needs LossInputs.ref_logps"),
        ({}, {"loss_type": "grpo", "clip_anchor": "both"}, "clip_anchor 'both' needs LossInputs.ref_logps"),
        (
            {"advantages": torch.ones(2, 3)},
            {"loss_type": "grpo", "importance_sampling_level": "geometric"},
            "needs one advantage per completion",
        ),
        (
            {"importance_weights": torch.ones(2, 3)},
            {"loss_type": "grpo", "importance_sampling_level": "geometric"},
            "needs one importance weight per completion",
        ),
    ],
)
def test_missing_inputs_are_refused(changes, options, words):
    with pytest.raises(ValueError, match=words):
        policy_loss(inputs(**changes), LossConfig(**options))


@pytest.mark.parametrize("loss", [torch.zeros(2), 0.5])
def test_outputs_hold_a_scalar_tensor(loss):
    with pytest.raises(ValueError, match="loss must be a tensor with one element"):
        LossOutputs(loss)

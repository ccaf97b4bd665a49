"""Every preset learns: a policy over sequences of two tokens, sampled, rewarded, and trained with the real functions."""

from dataclasses import fields

import pytest
import torch

from trl_grpo_ext.advantages import AdvantageConfig, group_advantages
from trl_grpo_ext.losses import LossConfig, LossInputs, policy_loss
from trl_grpo_ext.presets import PRESETS

VOCABULARY, LENGTH, GROUP, GROUPS = 4, 2, 5, 8
SCALES = {"group": "std", "batch": "batch", "none": "none"}
LOSS_OPTIONS = {item.name for item in fields(LossConfig)}


def configs(settings):
    loss = LossConfig(**{key: value for key, value in settings.items() if key in LOSS_OPTIONS})
    options = {
        key.removeprefix("advantage_"): value for key, value in settings.items() if key.startswith("advantage_")
    }
    options.setdefault("scale", SCALES[settings.get("scale_rewards", "group")])
    return loss, AdvantageConfig(num_generations=GROUP, **options)


def train(settings, steps=25, iterations=2, sign=1.0, learning_rate=0.15):
    """Probability of token 0 after training with a reward for it, from 1/4."""
    loss_config, advantage_config = configs(settings)
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(LENGTH, VOCABULARY, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=learning_rate)
    reference = logits.detach().log_softmax(-1)
    for step in range(steps):
        old = logits.detach().log_softmax(-1)
        rows = [torch.multinomial(row.exp(), GROUP * GROUPS, True, generator=generator) for row in old]
        tokens = torch.stack(rows, dim=1)
        rewards = sign * (tokens == 0).float().sum(1)
        advantages = group_advantages(rewards, advantage_config)
        for _ in range(iterations):
            inputs = LossInputs(
                of_tokens(logits.log_softmax(-1), tokens),
                advantages,
                torch.ones_like(tokens),
                old_logps=of_tokens(old, tokens),
                ref_logps=of_tokens(reference, tokens),
                num_items=tokens.numel(),
                window_tokens=tokens.numel(),
                max_completion_length=LENGTH,
                step=step,
            )
            optimizer.zero_grad()
            policy_loss(inputs, loss_config).loss.backward()
            optimizer.step()
    return logits.detach().softmax(-1)[:, 0].mean().item()


def of_tokens(log_probabilities, tokens):
    return torch.stack([log_probabilities[t][tokens[:, t]] for t in range(LENGTH)], dim=1)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "reference_clip"])
def test_preset_learns_what_is_rewarded_and_unlearns_what_is_punished(name):
    assert train(PRESETS[name]) > 0.9
    assert train(PRESETS[name], sign=-1.0) < 0.05


def test_the_reference_anchor_learns_up_to_the_edge_of_its_range():
    settings = dict(PRESETS["reference_clip"])
    # Each of the three other tokens may fall by 20 %, from 1/4 to 1/5: 2/5 is left for the rewarded one.
    assert train(settings, learning_rate=0.05) == pytest.approx(0.4, abs=0.02)
    assert train(settings | {"clip_anchor": "old"}, learning_rate=0.05) > 0.9


@pytest.mark.parametrize(
    "settings",
    [
        {"clip_kind": "dual", "delta": 3.0},
        {"clip_kind": "soft"},
        {"clip_kind": "none"},
        {"clip_kind": "clip_cov", "cov_low": 0.0, "cov_fraction": 0.05},
        {"clip_kind": "kl_cov", "cov_fraction": 0.05},
        {"importance_sampling_level": "sequence_token"},
        {"loss_type": "token_mean", "advantage_ranks": True},
        {"advantage_clip": 0.5},
        {"beta": 0.01},
        {"beta": 0.01, "kl_estimator": "k2"},
    ],
    ids=str,
)
def test_other_choices_learn(settings):
    assert train({"loss_type": "grpo"} | settings) > 0.9


def test_a_large_kl_coefficient_holds_the_policy_at_the_reference():
    assert abs(train({"loss_type": "grpo", "beta": 20.0}) - 0.25) < 0.05


def test_constant_rewards_teach_nothing():
    assert train(PRESETS["grpo"], sign=0.0) == 0.25

"""Clip-Cov and KL-Cov (arXiv 2505.22617); KL-Cov's value and gradient are in test_losses_reference.py."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_reference import covariances

from trl_grpo_ext.losses import LossConfig, LossInputs, policy_loss
from trl_grpo_ext.losses.covariance import chosen_tokens, token_covariance

CONFIG = LossConfig(loss_type="bnpo", clip_kind="clip_cov", cov_fraction=0.1, cov_low=0.05, cov_high=3.0)


def tensors(seed, rows=6, tokens=10):
    generator = torch.Generator().manual_seed(seed)
    logps = torch.randn(rows, tokens, generator=generator) - 2
    old = logps + 0.2 * torch.randn(rows, tokens, generator=generator)
    mask = torch.rand(rows, tokens, generator=generator) < 0.8
    advantages = torch.randn(rows, generator=generator)
    return logps.requires_grad_(), old, mask, advantages


def test_covariance_is_that_of_the_plain_loop():
    logps, _, mask, advantages = tensors(0)
    found = token_covariance(logps, advantages.unsqueeze(1).expand_as(logps), mask)
    places = [[t for t in range(10) if mask[i, t]] for i in range(6)]
    expected = covariances([[logps[i, t] for t in row] for i, row in enumerate(places)], advantages.tolist())
    for (i, position), value in expected.items():
        assert found[i, places[i][position]].item() == pytest.approx(value, abs=1e-5)
    assert not found[~mask].any()
    # Their mean is the covariance of log-probability and advantage.
    pairs = torch.stack([logps[mask], advantages.unsqueeze(1).expand_as(logps)[mask]])
    assert (found.sum() / mask.sum()).item() == pytest.approx(torch.cov(pairs, correction=0)[0, 1].item(), abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), step=st.integers(0, 1000), fraction=st.floats(1e-4, 1.0))
def test_clip_cov_detaches_the_wanted_number_of_eligible_tokens(seed, step, fraction):
    logps, _, mask, advantages = tensors(seed)
    config = replace(CONFIG, cov_fraction=fraction)
    expanded = advantages.unsqueeze(1).expand_as(logps)
    clipped = torch.rand(6, 10, generator=torch.Generator().manual_seed(seed)) < 0.2
    chosen = chosen_tokens(logps, expanded, mask, clipped, config, step)
    covariance = token_covariance(logps, expanded, mask)
    eligible = mask & ~clipped & (covariance > config.cov_low) & (covariance < config.cov_high)
    assert not (chosen & ~eligible).any()
    assert chosen.sum() == min(eligible.sum(), max(1, int(fraction * int(mask.sum()))))


def test_clip_cov_takes_the_tokens_out_of_the_loss_and_out_of_the_gradient():
    logps, old, mask, advantages = tensors(1)
    inputs = LossInputs(logps, advantages, mask, old_logps=old, step=3)
    held = policy_loss(inputs, CONFIG)
    plain = policy_loss(inputs, replace(CONFIG, clip_kind="hard"))
    gradients = [torch.autograd.grad(output.loss, logps)[0] for output in (held, plain)]
    changed = gradients[0] != gradients[1]
    wanted = max(1, int(0.1 * int(mask.sum())))
    assert changed.sum() == wanted
    assert not gradients[0][changed].any()
    assert held.metrics["clip_ratio/covariance"] == pytest.approx(wanted / int(mask.sum()))
    assert "clip_ratio/covariance" not in plain.metrics


def test_clip_cov_leaves_alone_what_the_clip_holds_back():
    logps, old, mask, advantages = tensors(5)
    config = replace(CONFIG, cov_fraction=1.0, epsilon=0.1)
    inputs = LossInputs(logps, advantages, mask, old_logps=old)
    ratio, expanded = (logps - old).exp(), advantages.unsqueeze(1).expand_as(logps)
    held = ((ratio < 0.9) & (expanded < 0)) | ((ratio > 1.1) & (expanded > 0))
    covariance = token_covariance(logps, expanded, mask)
    inside = mask & (covariance > config.cov_low) & (covariance < config.cov_high)
    assert (inside & held).any() and (inside & ~held).any()
    found = policy_loss(inputs, config).metrics["clip_ratio/covariance"]
    assert found == pytest.approx(((inside & ~held).sum() / mask.sum()).item())


def test_clip_cov_draws_from_seed_and_step_and_from_nothing_else():
    logps, _, mask, advantages = tensors(2)

    def chosen(seed, step):
        expanded = advantages.unsqueeze(1).expand_as(logps)
        config = replace(CONFIG, cov_seed=seed)
        return chosen_tokens(logps, expanded, mask, torch.zeros_like(mask), config, step)

    before = torch.random.get_rng_state()
    first = chosen(0, 5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(chosen(0, 5), first)
    assert any(not torch.equal(chosen(0, step), first) for step in range(20))
    assert any(not torch.equal(chosen(seed, 5), first) for seed in range(20))


def test_kl_cov_penalises_the_tokens_with_the_highest_covariance():
    logps, old, mask, advantages = tensors(3)
    config = replace(CONFIG, clip_kind="kl_cov", cov_fraction=0.2, cov_kl_coef=2.0)
    inputs = LossInputs(logps, advantages, mask, old_logps=old)
    plain = torch.autograd.grad(policy_loss(inputs, replace(config, clip_kind="none")).loss, logps)[0]
    penalised = torch.autograd.grad(policy_loss(inputs, config).loss, logps)[0]
    covariance = token_covariance(logps, advantages.unsqueeze(1).expand_as(logps), mask)
    changed = plain != penalised
    assert changed.sum() == int(0.2 * int(mask.sum()))
    assert covariance[changed].min() >= covariance[mask & ~changed].max()
    expected = 2.0 * (logps - old).sign() / mask.sum()
    torch.testing.assert_close((penalised - plain)[changed], expected[changed].detach())


@pytest.mark.parametrize("kind", ["clip_cov", "kl_cov"])
def test_a_micro_batch_without_tokens(kind):
    logps, old, mask, advantages = tensors(4)
    inputs = LossInputs(logps, advantages, torch.zeros_like(mask), old_logps=old)
    assert policy_loss(inputs, replace(CONFIG, clip_kind=kind)).loss == 0

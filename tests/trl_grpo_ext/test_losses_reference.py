"""`policy_loss` against plain loops in float64: value and gradient, for every combination that is allowed."""

import itertools
from dataclasses import replace

import pytest
import torch
from loss_reference import reference_loss

from trl_grpo_ext.losses import LossConfig, LossInputs, policy_loss

ROWS, TOKENS = 5, 6
DIVISORS = {"accumulation_steps": 3, "max_completion_length": 11, "num_items": 17.0, "window_tokens": 41}
KINDS = {
    "hard": {},
    "asymmetric": {"epsilon_high": 0.5},
    "dual": {"delta": 1.4},
    "soft": {},
    "none": {},
    "kl_cov": {"cov_fraction": 0.2, "cov_kl_coef": 0.7},
}


def micro_batch(seed, old_scale=0.4):
    """Log-probabilities with gradient, and everything else, in float64; row 3 is fully masked."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logps = normal(ROWS, TOKENS) - 2
    lengths = torch.tensor([6, 4, 1, 0, 5])
    mask = torch.arange(TOKENS) < lengths.unsqueeze(1)
    return {
        "logps": logps.requires_grad_(),
        "old_logps": logps.detach() + old_scale * normal(ROWS, TOKENS),
        "ref_logps": logps.detach() + 0.3 * normal(ROWS, TOKENS),
        "advantages": torch.tensor([1.2, -0.7, 0.4, 2.0, -1.5], dtype=torch.float64),
        "mask": mask,
    }


def both_losses(config, batch):
    inputs = LossInputs(**batch, **DIVISORS, num_processes=2)
    fast = policy_loss(inputs, config).loss
    names = ("logps", "old_logps", "ref_logps")
    slow = reference_loss(
        *(batch[name] for name in names), batch["advantages"].tolist(), batch["mask"], config, **DIVISORS, ranks=2
    )
    return [(loss, torch.autograd.grad(loss, batch["logps"])[0]) for loss in (fast, slow)]


def assert_equal_to_reference(config, seed=0):
    (fast, fast_gradient), (slow, slow_gradient) = both_losses(config, micro_batch(seed))
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-10, atol=1e-14)
    assert slow_gradient.abs().sum() > 0


def allowed():
    levels = ("token", "sequence", "sequence_token", "geometric")
    for kind, level, anchor in itertools.product(KINDS, levels, ("old", "reference", "both")):
        try:
            yield LossConfig(clip_kind=kind, importance_sampling_level=level, clip_anchor=anchor, **KINDS[kind])
        except ValueError:
            continue


def name_of(config):
    return f"{config.clip_kind}-{config.importance_sampling_level}-{config.clip_anchor}"


@pytest.mark.parametrize("config", list(allowed()), ids=name_of)
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "token_mean"])
def test_value_and_gradient(config, loss_type):
    assert_equal_to_reference(replace(config, loss_type=loss_type))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("level", ["token", "sequence", "sequence_token", "geometric"])
def test_value_and_gradient_with_kl(estimator, corrected, level):
    config = LossConfig(
        loss_type="grpo",
        importance_sampling_level=level,
        beta=0.3,
        kl_estimator=estimator,
        use_bias_correction_kl=corrected,
    )
    assert_equal_to_reference(config, seed=1)
    without = policy_loss(LossInputs(**micro_batch(1)), replace(config, beta=0.0)).loss
    assert policy_loss(LossInputs(**micro_batch(1)), config).loss != without
    in_reward = replace(config, kl_place="reward")
    assert policy_loss(LossInputs(**micro_batch(1)), in_reward).loss == without


def test_there_is_an_allowed_combination_of_every_kind_and_level():
    found = list(allowed())
    assert {config.clip_kind for config in found} == set(KINDS)
    assert {config.importance_sampling_level for config in found} == {
        "token",
        "sequence",
        "sequence_token",
        "geometric",
    }
    # hard, asymmetric, dual, none at 3 levels and soft too, hard, asymmetric, none at geometric, each at 3 anchors.
    assert len(found) == 5 * 3 * 3 + 3 * 3 + 1


@pytest.mark.parametrize(
    "config", [each for each in allowed() if each.importance_sampling_level != "sequence_token"], ids=name_of
)
def test_gradient_is_that_of_the_value(config):
    """Against finite differences. GSPO-token is left out: its stopped gradient is not that of its value."""
    batch = micro_batch(2)
    config = replace(config, loss_type="grpo", beta=0.1)

    def loss(logps):
        return policy_loss(LossInputs(**batch | {"logps": logps}), config).loss

    assert torch.autograd.gradcheck(loss, batch["logps"], eps=1e-7, atol=1e-6)


def test_gspo_token_has_the_value_of_the_sequence_and_the_gradient_of_the_tokens():
    batch = micro_batch(3)
    config = LossConfig(loss_type="grpo", importance_sampling_level="sequence", clip_kind="none")
    of_sequence = policy_loss(LossInputs(**batch), config).loss
    of_tokens = policy_loss(LossInputs(**batch), replace(config, importance_sampling_level="sequence_token")).loss
    torch.testing.assert_close(of_tokens, of_sequence)
    # With one advantage per sequence both gradients are the same too (GSPO, section 4.3).
    first, second = (torch.autograd.grad(loss, batch["logps"])[0] for loss in (of_sequence, of_tokens))
    torch.testing.assert_close(second, first)


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_token"])
def test_token_advantages_equal_to_row_advantages_change_nothing(level):
    batch = micro_batch(4)
    config = LossConfig(loss_type="bnpo", importance_sampling_level=level)
    rows = policy_loss(LossInputs(**batch), config)
    tokens = batch["advantages"].unsqueeze(1).expand(ROWS, TOKENS)
    per_token = policy_loss(LossInputs(**batch | {"advantages": tokens}), config)
    torch.testing.assert_close(per_token.loss, rows.loss)


def test_token_advantages_are_used_token_by_token():
    batch = micro_batch(5)
    advantages = torch.zeros(ROWS, TOKENS, dtype=torch.float64)
    advantages[1, 2] = 1.0
    inputs = LossInputs(**batch | {"advantages": advantages, "old_logps": None})
    gradient = torch.autograd.grad(policy_loss(inputs, LossConfig(loss_type="bnpo")).loss, batch["logps"])[0]
    expected = torch.zeros_like(gradient)
    expected[1, 2] = -1 / 16
    torch.testing.assert_close(gradient, expected)


def test_missing_old_log_probabilities_are_those_of_the_policy():
    batch = micro_batch(6) | {"old_logps": None}
    same = batch | {"old_logps": batch["logps"].detach().clone()}
    config = LossConfig(loss_type="grpo")
    torch.testing.assert_close(*(policy_loss(LossInputs(**each), config).loss for each in (batch, same)))


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), float("-inf"), 1e30])
@pytest.mark.parametrize("level", ["token", "sequence", "sequence_token", "geometric"])
def test_values_outside_the_mask_are_never_read(garbage, level):
    config = LossConfig(loss_type="grpo", importance_sampling_level=level, clip_anchor="both", beta=0.1)
    clean, dirty = micro_batch(7), micro_batch(7)
    for name in ("old_logps", "ref_logps"):
        dirty[name] = torch.where(dirty["mask"], dirty[name], garbage)
    dirty["logps"] = torch.where(dirty["mask"], dirty["logps"], garbage).detach().requires_grad_()
    extra = {"entropies": torch.where(dirty["mask"], 1.0, garbage)}
    if level != "geometric":
        extra["importance_weights"] = torch.where(dirty["mask"], 1.0, garbage)
    first, second = policy_loss(LossInputs(**clean), config), policy_loss(LossInputs(**dirty, **extra), config)
    torch.testing.assert_close(second.loss, first.loss)
    gradients = [torch.autograd.grad(o.loss, b["logps"])[0] for o, b in ((first, clean), (second, dirty))]
    torch.testing.assert_close(gradients[1], gradients[0])
    assert all(torch.isfinite(torch.as_tensor(value)) for value in second.metrics.values())


def test_entropy_mask_takes_tokens_out_of_the_surrogate_but_not_out_of_the_kl():
    batch = micro_batch(8)
    entropy_mask = torch.zeros(ROWS, TOKENS, dtype=torch.bool)
    config = LossConfig(loss_type="bnpo", beta=0.5)
    masked = policy_loss(LossInputs(**batch, entropy_mask=entropy_mask), config)
    no_advantage = policy_loss(LossInputs(**batch | {"advantages": torch.zeros(ROWS)}), config)
    torch.testing.assert_close(masked.loss, no_advantage.loss)


def test_entropy_mask_restricts_the_geometric_mean():
    batch = micro_batch(9)
    kept = torch.arange(TOKENS).expand(ROWS, TOKENS) % 2 == 0
    config = LossConfig(loss_type="grpo", importance_sampling_level="geometric")
    with_entropy_mask = policy_loss(LossInputs(**batch, entropy_mask=kept), config)
    # Every row keeps its first token, so its value per sequence is that of a mask with the kept tokens only.
    with_mask = policy_loss(LossInputs(**batch | {"mask": batch["mask"] & kept}), config)
    torch.testing.assert_close(with_entropy_mask.loss, with_mask.loss)


def test_importance_weights_multiply_the_surrogate():
    batch = micro_batch(10)
    weights = torch.tensor([[2.0], [0.5], [1.0], [3.0], [0.0]], dtype=torch.float64)
    config = LossConfig(loss_type="grpo")
    weighted = policy_loss(LossInputs(**batch, importance_weights=weights), config).loss
    scaled = policy_loss(LossInputs(**batch | {"advantages": batch["advantages"] * weights[:, 0]}), config).loss
    torch.testing.assert_close(weighted, scaled)


def test_half_precision_is_computed_in_float32():
    batch = {
        name: value.detach().bfloat16() if value.is_floating_point() else value
        for name, value in micro_batch(0).items()
    }
    output = policy_loss(LossInputs(**batch), LossConfig(loss_type="grpo"))
    single = {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, policy_loss(LossInputs(**single), LossConfig(loss_type="grpo")).loss)


def test_a_ratio_that_would_overflow_leaves_a_finite_gradient():
    logps = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    old = torch.tensor([[-200.0, -1.0]])
    for advantage in (1.0, -1.0):
        inputs = LossInputs(logps, torch.tensor([advantage]), torch.ones(1, 2), old_logps=old)
        loss = policy_loss(inputs, LossConfig(loss_type="grpo")).loss
        gradient = torch.autograd.grad(loss, logps)[0]
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
        assert gradient[0, 0] == 0 and gradient[0, 1] == -advantage / 2

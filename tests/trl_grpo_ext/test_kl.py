"""KL estimators against the exact divergence, the penalty on rewards, and the adaptive coefficient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.kl import AdaptiveKLController, kl_estimate, penalize_rewards

logits = st.lists(st.floats(-2, 2), min_size=5, max_size=5)


def distributions(first, second):
    return (torch.tensor(values, dtype=torch.float64).log_softmax(-1) for values in (first, second))


@settings(deadline=None)
@given(first=logits, second=logits)
def test_k1_and_k3_have_the_mean_of_the_divergence_and_k2_is_near_it(first, second):
    """The mean over all tokens, weighted by the policy: exact, without sampling."""
    policy, reference = distributions(first, second)
    exact = (policy.exp() * (policy - reference)).sum().item()
    mean = {name: (policy.exp() * kl_estimate(policy, reference, name)).sum().item() for name in ("k1", "k2", "k3")}
    assert mean["k1"] == pytest.approx(exact, abs=1e-9)
    assert mean["k3"] == pytest.approx(exact, abs=1e-9)
    assert mean["k2"] >= -1e-12


@settings(deadline=None)
@given(first=logits, change=logits)
def test_k2_is_right_to_second_order(first, change):
    policy = torch.tensor(first, dtype=torch.float64)
    step = 1e-3 * torch.tensor(change, dtype=torch.float64)
    policy, reference = policy.log_softmax(-1), (policy + step).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum().item()
    k2 = (policy.exp() * kl_estimate(policy, reference, "k2")).sum().item()
    assert k2 == pytest.approx(exact, rel=2e-2, abs=1e-12)


@settings(deadline=None)
@given(first=logits, second=logits)
def test_k2_and_k3_are_never_negative_and_all_vanish_where_the_policies_agree(first, second):
    policy, reference = distributions(first, second)
    assert (kl_estimate(policy, reference, "k2") >= 0).all()
    assert (kl_estimate(policy, reference, "k3") >= -1e-12).all()
    for name in ("k1", "k2", "k3"):
        assert not kl_estimate(policy, policy, name).any()


@settings(max_examples=50, deadline=None)
@given(first=logits, second=logits)
def test_mean_gradient_of_k2_is_that_of_the_divergence_and_of_k1_is_zero(first, second):
    """Tokens are drawn from the policy without gradient, as in training."""
    policy_logits = torch.tensor(first, dtype=torch.float64, requires_grad=True)
    reference = torch.tensor(second, dtype=torch.float64).log_softmax(-1)

    def gradient(value_of):
        policy = policy_logits.log_softmax(-1)
        return torch.autograd.grad(value_of(policy).sum(), policy_logits)[0]

    exact = gradient(lambda policy: policy.exp() * (policy - reference))
    k2 = gradient(lambda policy: policy.detach().exp() * kl_estimate(policy, reference, "k2"))
    k1 = gradient(lambda policy: policy.detach().exp() * kl_estimate(policy, reference, "k1"))
    torch.testing.assert_close(k2, exact)
    torch.testing.assert_close(k1, torch.zeros_like(k1))


def test_sampled_means_come_to_the_divergence():
    torch.manual_seed(0)
    policy, reference = distributions([1.0, 0.0, -1.0, 0.5, 0.2], [0.0, 0.5, 0.0, 0.0, -1.0])
    tokens = torch.multinomial(policy.exp(), 200_000, replacement=True)
    exact = (policy.exp() * (policy - reference)).sum().item()
    found = {name: kl_estimate(policy[tokens], reference[tokens], name) for name in ("k1", "k3")}
    for values in found.values():
        assert values.mean().item() == pytest.approx(exact, abs=5 * (values.std() / math.sqrt(len(values))).item())
    assert found["k3"].std() < found["k1"].std()


def test_another_estimator_is_refused():
    with pytest.raises(ValueError, match="kl_estimator must be one of k1, k2, k3, not 'k4'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


def test_penalty_on_the_rewards():
    logps = torch.tensor([[-1.0, -2.0, -9.0], [-1.0, 9.0, 9.0], [-1.0, -1.0, -1.0]], requires_grad=True)
    ref = torch.tensor([[-1.5, -1.0, 3.0], [-2.0, float("nan"), 0.0], [-1.0, -1.0, -1.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    rewards = torch.tensor([1.0, 2.0, float("nan")])
    found = penalize_rewards(rewards, logps, ref, mask, beta=0.1)
    assert found[:2].tolist() == pytest.approx([1 - 0.1 * (0.5 - 1.0), 2 - 0.1 * 1.0])
    assert torch.isnan(found[2])
    assert not found.requires_grad
    squares = penalize_rewards(rewards, logps, ref, mask, beta=0.1, estimator="k2")
    assert squares[0].item() == pytest.approx(1 - 0.1 * (0.125 + 0.5))


class TestAdaptiveCoefficient:
    def test_hand_computed_updates(self):
        controller = AdaptiveKLController(beta=0.1, target=6.0)
        assert controller.update(6.0) == pytest.approx(0.1)
        assert controller.update(6.6) == pytest.approx(0.1 * 1.01)
        assert controller.update(600.0) == pytest.approx(0.1 * 1.01 * 1.02)
        assert controller.update(0.0) == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)

    def test_comes_to_the_target(self):
        """A world where the divergence is 1 / beta."""
        controller = AdaptiveKLController(beta=5.0, target=2.0)
        for _ in range(500):
            controller.update(1 / controller.beta)
        assert 1 / controller.beta == pytest.approx(2.0, rel=1e-3)

    @settings(deadline=None)
    @given(values=st.lists(st.floats(-1, 1e9), max_size=30))
    def test_stays_above_zero_and_ignores_what_is_not_finite(self, values):
        controller = AdaptiveKLController(beta=0.2, target=0.5)
        for value in values:
            controller.update(value)
        before = controller.beta
        assert 0 < before < math.inf
        assert controller.update(math.nan) == controller.update(math.inf) == before

    def test_state_goes_through_a_checkpoint(self):
        first, second = (AdaptiveKLController(beta=0.1, target=1.0) for _ in range(2))
        first.update(3.0)
        second.load_state_dict(first.state_dict())
        assert second.update(0.5) == first.update(0.5)

    @pytest.mark.parametrize("name", ["beta", "target", "gain"])
    @pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
    def test_refused(self, name, value):
        with pytest.raises(ValueError, match=f"{name} of an adaptive KL coefficient must be a finite number above 0"):
            AdaptiveKLController(**{"beta": 0.1, "target": 1.0} | {name: value})

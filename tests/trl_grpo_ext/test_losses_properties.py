"""What must hold for every input of the losses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.losses import LossConfig, LossInputs, dapo_num_items, effective_sample_size, policy_loss

seeds = st.integers(0, 2**32 - 1)
levels = st.sampled_from(["token", "sequence", "sequence_token", "geometric"])
anchors = st.sampled_from(["old", "reference", "both"])
loss_types = st.sampled_from(["grpo", "bnpo", "dr_grpo", "dapo", "token_mean"])
DIVISORS = {"max_completion_length": 7, "num_items": 13.0, "window_tokens": 19}


def random_inputs(seed, rows=4, tokens=5, spread=1.0, **changes):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = torch.rand(rows, tokens, generator=generator) < 0.7
    logps = (normal(rows, tokens) - 2).requires_grad_()
    values = {
        "logps": logps,
        "old_logps": logps.detach() + spread * normal(rows, tokens),
        "ref_logps": logps.detach() + spread * normal(rows, tokens),
        "advantages": normal(rows),
        "mask": mask,
    }
    return LossInputs(**values | DIVISORS | changes)


def gradient(inputs, config):
    return torch.autograd.grad(policy_loss(inputs, config).loss, inputs.logps)[0]


@settings(max_examples=60, deadline=None)
@given(seed=seeds, level=levels, anchor=anchors, kind=st.sampled_from(["hard", "asymmetric"]), loss_type=loss_types)
def test_the_hard_clip_never_increases_the_surrogate(seed, level, anchor, kind, loss_type):
    high = 0.4 if kind == "asymmetric" else None
    common = {"importance_sampling_level": level, "clip_anchor": anchor, "loss_type": loss_type}
    clipped = LossConfig(clip_kind=kind, epsilon_high=high, **common)
    inputs = random_inputs(seed)
    # The loss is minus the surrogate.
    assert (
        policy_loss(inputs, clipped).loss >= policy_loss(inputs, LossConfig(clip_kind="none", **common)).loss - 1e-12
    )


@settings(max_examples=40, deadline=None)
@given(seed=seeds, level=levels, loss_type=loss_types)
def test_both_anchors_give_at_most_the_smaller_surrogate_of_each_sequence_and_token(seed, level, loss_type):
    inputs = random_inputs(seed)
    losses = {
        anchor: policy_loss(
            inputs, LossConfig(clip_anchor=anchor, importance_sampling_level=level, loss_type=loss_type)
        ).loss
        for anchor in ("old", "reference", "both")
    }
    assert losses["both"] >= max(losses["old"], losses["reference"]) - 1e-12


@settings(max_examples=40, deadline=None)
@given(seed=seeds, level=levels, anchor=anchors, loss_type=loss_types)
def test_zero_advantages_have_no_gradient(seed, level, anchor, loss_type):
    inputs = random_inputs(seed, advantages=torch.zeros(4))
    config = LossConfig(importance_sampling_level=level, clip_anchor=anchor, loss_type=loss_type)
    assert torch.equal(gradient(inputs, config), torch.zeros_like(inputs.logps))


@settings(max_examples=40, deadline=None)
@given(seed=seeds, level=levels, loss_type=loss_types, order=st.permutations(range(4)))
def test_the_order_of_rows_does_not_matter(seed, level, loss_type, order):
    config = LossConfig(importance_sampling_level=level, loss_type=loss_type, beta=0.1)
    inputs = random_inputs(seed)
    names = ("old_logps", "ref_logps", "advantages", "mask")
    moved = {name: getattr(inputs, name)[list(order)] for name in names}
    moved["logps"] = inputs.logps.detach()[list(order)].requires_grad_()
    permuted = LossInputs(**moved, **DIVISORS)
    torch.testing.assert_close(policy_loss(permuted, config).loss, policy_loss(inputs, config).loss)
    torch.testing.assert_close(gradient(permuted, config), gradient(inputs, config)[list(order)])


@settings(max_examples=40, deadline=None)
@given(seed=seeds, level=levels, loss_type=loss_types, extra=st.integers(1, 4))
def test_more_padding_changes_nothing(seed, level, loss_type, extra):
    config = LossConfig(importance_sampling_level=level, loss_type=loss_type, beta=0.1)
    inputs = random_inputs(seed)
    names = ("old_logps", "ref_logps", "mask")
    padded = {name: torch.nn.functional.pad(getattr(inputs, name), (0, extra)) for name in names}
    padded["logps"] = torch.nn.functional.pad(inputs.logps.detach(), (0, extra)).requires_grad_()
    longer = LossInputs(**padded, advantages=inputs.advantages, **DIVISORS)
    torch.testing.assert_close(policy_loss(longer, config).loss, policy_loss(inputs, config).loss)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, level=levels, kind=st.sampled_from(["hard", "none", "soft"]))
def test_on_policy_every_kind_is_the_policy_gradient(seed, level, kind):
    """At ratio 1 the gradient is that of -A logp, averaged; level `sequence` and `geometric` spread it over tokens."""
    if level == "geometric" and kind == "soft":
        kind = "hard"
    inputs = random_inputs(seed, old_logps=None)
    config = LossConfig(importance_sampling_level=level, clip_kind=kind, loss_type="grpo")
    lengths = inputs.mask.sum(1, keepdim=True).clamp(min=1)
    expected = -inputs.advantages.unsqueeze(1) * inputs.mask / lengths / len(inputs.advantages)
    torch.testing.assert_close(gradient(inputs, config), expected)


@pytest.mark.parametrize("anchor", ["old", "reference"])
def test_beyond_the_range_there_is_no_gradient_and_against_it_there_is(anchor):
    logps = torch.zeros(4, 1, requires_grad=True)
    ratios = torch.tensor([[1.3], [0.7], [1.3], [0.7]])
    inputs = LossInputs(
        logps,
        torch.tensor([1.0, -1.0, -1.0, 1.0]),
        torch.ones(4, 1),
        old_logps=-ratios.log(),
        ref_logps=-ratios.log(),
    )
    config = LossConfig(loss_type="grpo", clip_anchor=anchor)
    assert (gradient(inputs, config)[:, 0] != 0).tolist() == [False, False, True, True]
    metrics = policy_loss(inputs, config).metrics
    assert metrics["clip_ratio/low_mean"] == 0.25
    assert metrics["clip_ratio/high_mean"] == 0.25
    assert metrics["clip_ratio/region_mean"] == 0.5


def test_reference_anchor_stops_learning_at_the_edge_of_the_range():
    """Gradient ascent on one token: the old anchor moves along and goes on, the reference stays and stops it."""
    drift = {}
    for anchor in ("old", "reference"):
        logps = torch.full((1, 1), -5.0, requires_grad=True)
        for _ in range(40):
            inputs = LossInputs(logps, torch.ones(1), torch.ones(1, 1), ref_logps=torch.full((1, 1), -5.0))
            config = LossConfig(loss_type="grpo", clip_anchor=anchor, epsilon=0.2)
            logps = (logps - 0.05 * gradient(inputs, config)).detach().requires_grad_()
        drift[anchor] = math.exp(logps.item() + 5)
    assert 1.2 <= drift["reference"] < 1.2 * math.exp(0.05 * 1.2)
    assert drift["old"] > 5


@settings(max_examples=30, deadline=None)
@given(seed=seeds, ranks=st.integers(1, 3), steps=st.integers(1, 3))
def test_token_mean_is_the_mean_over_all_ranks_and_micro_batches(seed, ranks, steps):
    batches = [[random_inputs(seed + 10 * rank + step) for step in range(steps)] for rank in range(ranks)]
    tokens = sum(int(batch.mask.sum()) for rank in batches for batch in rank)
    config = LossConfig(loss_type="token_mean")

    def loss(batch):
        names = ("logps", "old_logps", "ref_logps", "advantages", "mask")
        values = {name: getattr(batch, name) for name in names}
        return policy_loss(LossInputs(**values, window_tokens=max(tokens, 1), num_processes=ranks), config).loss.item()

    # Data-parallel training sums over micro-batches and averages over ranks.
    averaged = sum(sum(map(loss, rank)) for rank in batches) / ranks
    names = ("logps", "old_logps", "ref_logps", "advantages", "mask")
    flat = [batch for rank in batches for batch in rank]
    whole = LossInputs(**{name: torch.cat([getattr(batch, name) for batch in flat]) for name in names})
    assert averaged == pytest.approx(policy_loss(whole, LossConfig(loss_type="bnpo")).loss.item(), abs=1e-12)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
def test_accumulated_micro_batches_are_one_batch(loss_type):
    whole = random_inputs(3, rows=6)
    config = LossConfig(loss_type=loss_type)
    names = ("logps", "old_logps", "ref_logps", "advantages", "mask")
    total = 0.0
    for start in (0, 2, 4):
        part = {name: getattr(whole, name)[start : start + 2] for name in names}
        total += policy_loss(LossInputs(**part, max_completion_length=7, accumulation_steps=3), config).loss
    torch.testing.assert_close(total, policy_loss(whole, config).loss)


def test_dapo_items_of_one_accumulation_window():
    assert dapo_num_items(120, 2) == 60
    assert dapo_num_items(120, 2, accumulation_steps=4, steps_per_generation=8) == 30
    assert dapo_num_items(0, 1) == 1
    assert dapo_num_items(torch.tensor(0), 1) == 1


def test_no_gradient_flows_into_the_anchors():
    inputs = random_inputs(0)
    for values in (inputs.old_logps, inputs.ref_logps):
        values.requires_grad_()
    config = LossConfig(clip_anchor="both", beta=0.1, use_bias_correction_kl=True)
    policy_loss(inputs, config).loss.backward()
    assert inputs.logps.grad.abs().sum() > 0
    assert inputs.old_logps.grad is None
    assert inputs.ref_logps.grad is None


def test_effective_sample_size():
    assert effective_sample_size(torch.ones(5)) == 1
    assert effective_sample_size(torch.tensor([1.0, 0.0, 0.0, 0.0])) == 0.25
    assert effective_sample_size(torch.tensor([])) == 1
    assert effective_sample_size(torch.tensor([1.0, 3.0])) == pytest.approx(16 / 20)


def test_metrics():
    logps = torch.tensor([[0.0, 0.0, 9.0], [0.0, 9.0, 9.0]])
    ratios = torch.tensor([[1.0, 2.0, 7.0], [0.5, 7.0, 7.0]])
    inputs = LossInputs(
        logps,
        torch.tensor([1.0, -1.0]),
        torch.tensor([[1, 1, 0], [1, 0, 0]]),
        old_logps=logps - ratios.log(),
        ref_logps=logps - 0.5,
        entropies=torch.tensor([[1.0, 2.0, 50.0], [6.0, 50.0, 50.0]]),
    )
    output = policy_loss(inputs, LossConfig(loss_type="grpo", kl_estimator="k1"))
    found = {name: float(value) for name, value in output.metrics.items()}
    assert found == pytest.approx(
        {
            "clip_ratio/low_mean": 1 / 3,
            "clip_ratio/high_mean": 1 / 3,
            "clip_ratio/region_mean": 2 / 3,
            "ratio/min": 0.5,
            "ratio/q05": 0.5,
            "ratio/median": 1.0,
            "ratio/q95": 2.0,
            "ratio/max": 2.0,
            "ratio/effective_sample_size": 3.5**2 / (3 * 5.25),
            "kl": 0.5,
            "entropy": 3.0,
        }
    )
    torch.testing.assert_close(output.ratio[inputs.mask.bool()], torch.tensor([1.0, 2.0, 0.5]))


def test_sequence_metrics_count_sequences():
    logps = torch.zeros(3, 2)
    inputs = LossInputs(
        logps,
        torch.tensor([1.0, 1.0, 1.0]),
        torch.tensor([[0, 1], [1, 0], [0, 0]]),
        old_logps=torch.tensor([[-9.0, -1.0], [0.0, 0.0], [-9.0, -9.0]]),
    )
    output = policy_loss(inputs, LossConfig(loss_type="grpo", importance_sampling_level="sequence"))
    assert output.ratio.shape == (3, 1)
    assert output.metrics["clip_ratio/high_mean"] == 0.5
    assert output.metrics["ratio/max"] == pytest.approx(math.e)


def test_a_micro_batch_without_tokens_has_loss_zero_and_a_gradient():
    inputs = random_inputs(0, mask=torch.zeros(4, 5))
    metrics = policy_loss(inputs, LossConfig()).metrics
    assert metrics.keys() == policy_loss(random_inputs(0), LossConfig()).metrics.keys()
    assert all(math.isnan(value) for value in metrics.values())
    for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "token_mean"):
        config = LossConfig(loss_type=loss_type, beta=0.1)
        assert policy_loss(inputs, config).loss == 0
        assert torch.equal(gradient(inputs, config), torch.zeros(4, 5, dtype=torch.float64))

"""Where settings coincide with TRL's, training ends with TRL's parameters, on both lines, through our own loss."""

import pytest
import torch

from tests.batching.models import OFF
from tests.conformance.runs import assert_moved, assert_same, extended, logged, parameters, stock, trained
from tests.conftest import installed_line

# name -> (settings, a metric that must not be 0, lest the option did nothing)
CASES = {
    "grpo": ({"loss_type": "grpo"}, None),
    "bnpo": ({"loss_type": "bnpo"}, None),
    "dr_grpo": ({"loss_type": "dr_grpo"}, None),
    "dapo": ({"loss_type": "dapo"}, None),
    "two_iterations": ({"loss_type": "grpo", "num_iterations": 2}, "clip_ratio/region_mean"),
    "dapo_two_iterations": ({"num_iterations": 2, "epsilon_high": 0.28}, "clip_ratio/high_mean"),
    "delta": ({"num_iterations": 2, "epsilon_high": 4.0, "delta": 1.05}, "clip_ratio/region_mean"),
    "sequence": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "num_iterations": 2, "epsilon": 0.02},
        "clip_ratio/region_mean",
    ),
    "beta": ({"loss_type": "grpo", "beta": 0.2}, "kl"),
    "beta_two_iterations": ({"loss_type": "bnpo", "beta": 0.2, "num_iterations": 2}, "kl"),
    "beta_sequence": (
        {"loss_type": "grpo", "beta": 0.2, "num_iterations": 2, "importance_sampling_level": "sequence"},
        "kl",
    ),
    "batch_scale": ({"scale_rewards": "batch"}, None),
    "no_scale": ({"scale_rewards": "none", "loss_type": "dr_grpo"}, None),
    "entropy_quantile": ({"top_entropy_quantile": 0.5}, None),
    "mask_truncated": ({"loss_type": "grpo", "mask_truncated_completions": True}, "completions/truncated_share"),
    "temperature": ({"temperature": 0.7, "num_iterations": 2}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_our_loss_trains_as_trl_does(case, model, tmp_path, request):
    settings, active = CASES[case]
    theirs = stock(model, tmp_path, **settings)
    before = parameters(theirs)
    theirs.train()
    calls = request.getfixturevalue("ours_only")
    ours = trained(extended(model, tmp_path, loss_backend="extended", **settings))
    assert len(calls) == 3 * 2
    assert_moved(parameters(ours), before)
    assert_same(parameters(ours), parameters(theirs))
    if active:
        assert max(logged(ours, active)) > 0


BATCHING = {"chunked_logps": True, "trim_padding": True}
GROUPED = {"shared_prompt": True, "keep_groups": True}


@pytest.mark.parametrize("case", ["grpo", "bnpo", "dr_grpo", "dapo", "delta", "sequence", "beta", "two_iterations"])
@pytest.mark.filterwarnings("error:.*is not used for")
def test_with_less_work_it_trains_as_trl_does(case, model, tmp_path):
    settings, active = CASES[case]
    theirs = trained(stock(model, tmp_path, **settings))
    # bnpo divides by the tokens of a micro-batch, so its rows must stay where TRL has them.
    parts = BATCHING if case == "bnpo" else BATCHING | GROUPED
    ours = extended(model, tmp_path, **settings, **parts)
    before = parameters(ours)
    ours.train()
    assert_moved(parameters(ours), before)
    assert_same(parameters(ours), parameters(theirs))
    if active:
        assert max(logged(ours, active)) > 0


@pytest.mark.parametrize(
    "settings", [{}, {"loss_type": "grpo", "beta": 0.1, "num_iterations": 2}], ids=["dapo", "grpo"]
)
def test_without_an_option_it_is_trl_to_the_last_bit(settings, model, tmp_path):
    theirs = trained(stock(model, tmp_path, **settings))
    # Batching saves work and rounds otherwise, where it is on by default.
    for batching, tolerance in ((OFF, 0.0), ({}, 5e-6)):
        ours = trained(extended(model, tmp_path, **settings, **batching))
        assert not ours.uses_extended_loss
        assert_same(parameters(ours), parameters(theirs), tolerance)


@pytest.mark.line_b
@pytest.mark.parametrize("loss_type", ["cispo", "sapo", "luspo", "vespo"])
def test_losses_of_later_trl_stay_available(loss_type, model, tmp_path):
    level = {"importance_sampling_level": "sequence"} if loss_type == "luspo" else {}
    settings = {"loss_type": loss_type, "num_iterations": 2, "entropy_coef": 0.01, **level}
    theirs = trained(stock(model, tmp_path, **settings))
    ours = trained(extended(model, tmp_path, **settings, **OFF))
    assert_same(parameters(ours), parameters(theirs), tolerance=0.0)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_our_advantages_train_as_trl_does(scale, model, tmp_path):
    theirs = trained(stock(model, tmp_path, scale_rewards=scale))
    # A bound that nothing reaches: the advantages are ours, and TRL's in value.
    ours = trained(extended(model, tmp_path, scale_rewards=scale, advantage_clip=1e6))
    assert ours.args.uses_extended_advantages and not ours.uses_extended_loss
    assert_same(parameters(ours), parameters(theirs))


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_peft(beta, model, tmp_path, request):
    peft = pytest.importorskip("peft")

    def run(make, **settings):
        lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        torch.manual_seed(0)
        trainer = make(model, tmp_path, peft_config=lora, beta=beta, num_iterations=2, **settings)
        before = parameters(trainer)
        trainer.train()
        assert_moved(parameters(trainer), before)
        return trainer

    theirs = run(stock)
    calls = request.getfixturevalue("ours_only")
    ours = run(extended, loss_backend="extended")
    assert len(calls) == 3 * 2
    assert all("lora_" in name for name in parameters(ours))
    assert_same(parameters(ours), parameters(theirs))


@pytest.mark.parametrize("backend", ["auto", "extended"])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "token_mean"])
def test_eight_rows_at_once_are_eight_rows_one_by_one(loss_type, backend, model, tmp_path):
    """Not for bnpo, whose divisor is the micro-batch's."""

    def run(size):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        trainer = extended(model, tmp_path, loss_type=loss_type, loss_backend=backend, **settings)
        trainer.train()
        return parameters(trainer)

    assert_same(run(1), run(8))


@pytest.mark.parametrize("loss_type", ["dapo", "token_mean"])
def test_generations_longer_than_the_accumulation(loss_type, model, tmp_path):
    """Steps per generation 4, accumulation 2: TRL 0.24's dapo is half of what TRL >= 1.10's is, ours is the latter."""
    settings = {"steps_per_generation": 4, "max_steps": 2}
    ours = extended(model, tmp_path, loss_backend="extended", loss_type=loss_type, **settings)
    sums = []
    compute_loss = ours._compute_loss

    def seen(model, inputs):
        loss = compute_loss(model, inputs)
        mask = inputs["completion_mask"]
        # On-policy the surrogate of a token is its advantage.
        sums.append(((mask.sum(-1) * -inputs["advantages"]).sum().item(), mask.sum().item(), loss.item()))
        return loss

    ours._compute_loss = seen
    ours.train()
    tokens = [count for _, count, _ in sums]
    windows = [sum(tokens[:2])] * 2 + [sum(tokens[2:])] * 2
    # Only the first window is on-policy.
    for (total, _, loss), window in list(zip(sums, windows, strict=True))[:2]:
        divisor = sum(tokens) * 2 / 4 if loss_type == "dapo" else window
        assert loss == pytest.approx(total / divisor, rel=1e-4, abs=1e-5)


def test_dapo_normaliser_of_the_stock_trainer(model, tmp_path):
    """What the docstring above says of TRL: fails when a later version makes our correction needless."""
    settings = {"steps_per_generation": 4, "max_steps": 2}
    theirs = trained(stock(model, tmp_path, **settings))
    ours = trained(extended(model, tmp_path, loss_backend="extended", **settings))
    ratio = logged(ours, "loss")[0] / logged(theirs, "loss")[0]
    assert ratio == pytest.approx(2.0 if installed_line() == "a" else 1.0, rel=1e-3)


@pytest.mark.parametrize("backend", ["auto", "extended"])
def test_evaluation_before_training(backend, model, tmp_path):
    """TRL 0.24's loss reads an attribute there that only `train()` sets. On-policy the mean over rows is 0."""
    settings = {"loss_type": "grpo", "per_device_eval_batch_size": 8, "beta": 0.1}
    metrics = extended(model, tmp_path, loss_backend=backend, **settings).evaluate()
    assert metrics["eval_loss"] == pytest.approx(0.0, abs=1e-5)

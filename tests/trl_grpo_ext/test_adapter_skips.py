"""A skipped row teaches nothing and moves no baseline: the stock trainer, both TRL lines."""

import math
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from adapter_runs import GROUP, dataset, make_trainer, texts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.rewards.adapters import ScalarReward
from trl_grpo_ext.rewards.skips import ExcludeSkipped, advantages_without_skipped, exclude_skipped, total_rewards


def skipped(text):
    """About half of the rows, so that most groups have some of them; the text alone decides."""
    return text[:1] in ("1", "7", "s", "a") or text == ""


def length_or_skip(response):
    if skipped(response):
        raise ValueError("no verdict")
    return 5.0 + len(response) + response.count("#")


@pytest.fixture
def run(tiny_model, tiny_tokenizer, tmp_path):
    """Train and record, at each loss, the advantage and the gradient of the log-probabilities of each row."""

    def train(callbacks=(), attach=False, **settings):
        reward = ScalarReward(length_or_skip, on_error="skip")
        trainer = make_trainer(
            tiny_model, tiny_tokenizer, tmp_path, [reward], dataset({}), 2, [*callbacks], learning_rate=0.0, **settings
        )
        if attach:
            exclude_skipped(trainer)
            exclude_skipped(trainer)
        trainer.seen = []
        record_gradients(trainer)
        trainer.train()
        return trainer

    return train


def record_gradients(trainer):
    import torch

    compute_loss = trainer._compute_loss

    def recorded(model, inputs):
        rows = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor) and value.dim() > 0}
        for row in range(len(inputs["advantages"])):
            one = {**inputs, **{key: value[row : row + 1] for key, value in rows.items()}}
            gradients = torch.autograd.grad(compute_loss(model, one), list(model.parameters()), allow_unused=True)
            size = sum(g.abs().sum().item() for g in gradients if g is not None)
            text = trainer.processing_class.decode(one["completion_ids"][0], skip_special_tokens=True)
            trainer.seen.append((text, one["advantages"].item(), size))
        return compute_loss(model, inputs)

    trainer._compute_loss = recorded


def expected_advantages(rewards, scale):
    """By hand: mean and standard deviation over the valid rows only."""
    valid = [reward for reward in rewards if not math.isnan(reward)]
    groups = [rewards[start : start + GROUP] for start in range(0, len(rewards), GROUP)]
    advantages = []
    for group in groups:
        known = [reward for reward in group if not math.isnan(reward)]
        spread = {"group": known, "batch": valid}.get(scale, ())
        divisor = (statistics.stdev(spread) if len(spread) > 1 else 0.0) + 1e-4 if scale != "none" else 1.0
        advantages += [0.0 if math.isnan(r) else (r - statistics.fmean(known)) / divisor for r in group]
    return advantages


def last_generation(trainer):
    return list(trainer._logs["rewards"]["length_or_skip"]), list(trainer._logs["advantages"])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_skipped_row_has_no_gradient_and_no_share_in_the_baseline(run, scale):
    trainer = run([ExcludeSkipped()], scale_rewards=scale)
    rewards, advantages = last_generation(trainer)
    assert [math.isnan(reward) for reward in rewards] == [skipped(text) for text in texts_of(trainer)]
    groups = [sum(map(math.isnan, rewards[start : start + GROUP])) for start in range(0, len(rewards), GROUP)]
    assert any(0 < count < GROUP - 1 for count in groups)
    assert advantages == pytest.approx(expected_advantages(rewards, scale), rel=1e-4, abs=1e-5)
    # TRL shuffles the rows between generation and loss.
    used = [advantage for _, advantage, _ in trainer.seen[-len(advantages) :]]
    assert sorted(used) == pytest.approx(sorted(advantages), rel=1e-4, abs=1e-5)
    assert all(gradient == 0.0 for text, _, gradient in trainer.seen if skipped(text))
    assert any(gradient > 0.0 for text, _, gradient in trainer.seen if not skipped(text))


def test_metrics_leave_the_skipped_rows_out(run):
    trainer = run([ExcludeSkipped()])
    rewards, _ = last_generation(trainer)
    valid = [reward for reward in rewards if not math.isnan(reward)]
    last = [entry for entry in trainer.state.log_history if "reward" in entry][-1]
    assert last["reward"] == pytest.approx(statistics.fmean(valid), rel=1e-5)
    assert min(valid) >= 5.0


@pytest.mark.line_a
def test_stock_trl_counts_skipped_rows_as_zero(run):
    """What makes all this necessary: without it the tests above would fail on this TRL."""
    trainer = run()
    rewards, advantages = last_generation(trainer)
    assert advantages != pytest.approx(expected_advantages(rewards, "group"), rel=1e-2, abs=1e-2)
    assert any(gradient > 0.0 for text, _, gradient in trainer.seen if skipped(text))


def test_attaching_by_hand_twice_is_the_same(run):
    trainer = run(attach=True)
    rewards, advantages = last_generation(trainer)
    assert any(map(math.isnan, rewards))
    assert advantages == pytest.approx(expected_advantages(rewards, "group"), rel=1e-4, abs=1e-5)
    calls = [trainer._calculate_rewards, trainer._generate_and_score_completions]
    exclude_skipped(trainer)
    assert [trainer._calculate_rewards, trainer._generate_and_score_completions] == calls


def test_callback_covers_evaluation_without_training(tiny_model, tiny_tokenizer, tmp_path):
    reward = ScalarReward(lambda response: None, name="r")
    rows = dataset({})
    trainer = make_trainer(tiny_model, tiny_tokenizer, tmp_path, [reward], rows, 1, [ExcludeSkipped()])
    tiny_model.eval()
    trainer._generate_and_score_completions([rows[0]] * GROUP)
    assert math.isnan(trainer._metrics["eval"]["reward"][-1])
    assert list(trainer._logs["advantages"]) == [0.0] * GROUP


def test_callback_added_after_construction(tiny_model, tiny_tokenizer, tmp_path):
    reward = ScalarReward(length_or_skip, on_error="skip")
    trainer = make_trainer(tiny_model, tiny_tokenizer, tmp_path, [reward], dataset({}), 1)
    trainer.add_callback(ExcludeSkipped())
    trainer.train()
    rewards, advantages = last_generation(trainer)
    assert advantages == pytest.approx(expected_advantages(rewards, "group"), rel=1e-4, abs=1e-5)


@pytest.mark.line_a
def test_batches_without_skips_keep_the_advantages_of_trl(tiny_model, tiny_tokenizer, tmp_path):
    trainer = make_trainer(
        tiny_model, tiny_tokenizer, tmp_path, [ScalarReward(lambda response: len(response), name="r")], dataset({}), 1
    )
    stock = trainer._generate_and_score_completions
    outputs = []
    trainer._generate_and_score_completions = lambda inputs: outputs.append(stock(inputs)) or dict(outputs[-1])
    exclude_skipped(trainer)
    wrapped = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: outputs.append(wrapped(inputs)) or outputs[-1]
    trainer.train()
    assert outputs[0]["advantages"] is outputs[1]["advantages"]


def test_other_trainers_are_refused():
    with pytest.raises(TypeError, match="needs a GRPOTrainer; SimpleNamespace has no '_calculate_rewards'"):
        exclude_skipped(SimpleNamespace())
    with pytest.raises(RuntimeError, match="call exclude_skipped"):
        ExcludeSkipped().on_train_begin(None, None, None)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([math.nan, 0.0, 1.0, 2.5, -3.0]), min_size=4, max_size=4), min_size=1, max_size=3
    ),
    st.sampled_from(["group", "batch", "none"]),
)
def test_advantages_by_hand(groups, scale):
    import torch

    rewards = [reward for group in groups for reward in group]
    advantages = advantages_without_skipped(torch.tensor(rewards, dtype=torch.float64), 4, scale)
    assert advantages.tolist() == pytest.approx(expected_advantages(rewards, scale), rel=1e-6, abs=1e-9)


def test_only_rows_without_any_reward_are_skipped():
    import torch

    rewards = torch.tensor([[1.0, math.nan], [math.nan, math.nan], [2.0, 4.0]])
    totals = total_rewards(rewards, torch.tensor([1.0, 0.5])).tolist()
    assert (totals[0], totals[2]) == (1.0, 4.0)
    assert math.isnan(totals[1])


@pytest.mark.slow
def test_each_rank_gets_its_own_rows(subprocess_environment, tmp_path):
    script = Path(__file__).with_name("two_ranks_with_skips.py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), str(tmp_path)]
    done = subprocess.run([sys.executable, *launch], env=subprocess_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The valid rewards 1, 2 and 6 have the mean 3, on both ranks together.
    assert "rank 0: [-2.0, 0.0] of [-2.0, 0.0, -1.0, 3.0]" in done.stdout
    assert "rank 1: [-1.0, 3.0] of [-2.0, 0.0, -1.0, 3.0]" in done.stdout

"""What ExtendedGRPOTrainer adds to TRL, in real training runs, both lines."""

import math
import statistics

import pytest
import torch
from datasets import Dataset

from tests.conformance.losses_for_tests import reinforce
from tests.conformance.runs import (
    GROUP,
    assert_moved,
    assert_same,
    extended,
    logged,
    parameters,
    rows,
    stock,
    trained,
    wordy,
)
from trl_grpo_ext import ExcludeSkipped, SelfCertainty
from trl_grpo_ext.kl import penalize_rewards

LOSS = "tests.conformance.losses_for_tests"


def watch(trainer):
    """Record each micro-batch of the loss, and the loss."""
    seen, compute_loss = [], trainer._compute_loss

    def watched(model, inputs):
        loss = compute_loss(model, inputs)
        seen.append((inputs, loss.item()))
        return loss

    trainer._compute_loss = watched
    return seen


def generations(trainer):
    """Record what is trained on, before TRL shuffles and splits it; drawing again passes here too."""
    seen, generate = [], trainer._generate_and_score_completions

    def watched(inputs):
        again, output = trainer.is_redrawing, generate(inputs)
        seen.append((again, output) if again else (inputs, output))
        return dict(output)

    trainer._generate_and_score_completions = watched
    return seen


# A loss of one's own.


@pytest.mark.parametrize("settings", [{"loss_fn": f"{LOSS}:reinforce"}, {"options": {"loss_fn": reinforce}}], ids=str)
def test_a_user_s_loss_trains_and_its_metrics_are_logged(settings, model, tmp_path, ours_only):
    trainer = extended(model, tmp_path, max_steps=2, loss_type="bnpo", **settings)
    before = parameters(trainer)
    trainer.train()
    assert not ours_only
    assert_moved(parameters(trainer), before)
    assert all(value > 0 for value in logged(trainer, "reinforce/tokens"))
    assert logged(trainer, "entropy") and logged(trainer, "ratio/median") == [1.0, 1.0]


def test_a_user_s_loss_with_the_gradient_of_trl_s_trains_the_same(model, tmp_path):
    """On-policy, -A log p has the gradient of the clipped surrogate."""
    theirs = trained(stock(model, tmp_path, loss_type="bnpo"))
    assert_same(parameters(trained(extended(model, tmp_path, loss_fn=f"{LOSS}:reinforce"))), parameters(theirs))


def test_a_loss_beside_other_options_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="loss_fn replaces the loss"):
        extended(model, tmp_path, clip_kind="none", options={"loss_fn": reinforce})


# The reference model.


def test_the_reference_anchor_has_its_reference_at_beta_0(model, tmp_path, ours_only):
    settings = {"loss_type": "grpo", "scale_rewards": "none", "max_steps": 3, "num_iterations": 2}
    trainer = extended(model, tmp_path, clip_anchor="reference", **settings)
    seen = watch(trainer)
    trainer.train()
    assert (trainer.beta, trainer.args.beta) == (0.0, 0.0)
    initial = trainer.ref_model.state_dict()
    assert all(torch.equal(initial[name], value) for name, value in extended_start(model).items())
    # The ratio to the reference leaves 1 with the first step, on fresh samples too.
    assert logged(trainer, "ratio/effective_sample_size")[2] < 1.0
    assert logged(trainer, "kl")[2] > 0.0
    assert all("ref_per_token_logps" in inputs for inputs, _ in seen)
    assert len(ours_only) == len(seen)


def test_the_reference_anchor_of_an_adapter_is_the_base_model(model, tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = extended(model, tmp_path, clip_anchor="both", peft_config=lora, max_steps=2, num_iterations=2)
    seen = watch(trainer)
    trainer.train()
    assert trainer.ref_model is None and trainer.beta == 0.0
    inputs, _ = seen[0]
    # The adapter is nothing yet.
    mask = inputs["completion_mask"].bool()
    torch.testing.assert_close(inputs["ref_per_token_logps"][mask], inputs["old_per_token_logps"][mask])
    assert logged(trainer, "kl")[1] > 0.0


def extended_start(model):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_kl_penalty_in_the_reward(estimator, model, tmp_path):
    trainer = extended(
        model, tmp_path, beta=0.5, kl_place="reward", kl_estimator=estimator, max_steps=2, scale_rewards="none",
        num_iterations=2, gradient_accumulation_steps=1, per_device_train_batch_size=8,
    )  # fmt: skip
    seen, rewards = generations(trainer), []
    scored = trainer._calculate_rewards
    trainer._calculate_rewards = lambda *args: rewards.append(scored(*args)) or rewards[-1]
    leave_the_reference(trainer)
    trainer.train()
    output = seen[0][1]
    totals = penalize_rewards(
        rewards[0].sum(dim=1), output["old_per_token_logps"], output["ref_per_token_logps"],
        output["completion_mask"], 0.5, estimator,
    )  # fmt: skip
    assert (totals - rewards[0].sum(dim=1)).abs().max() > 0.05
    groups = totals.view(-1, GROUP)
    expected = (groups - groups.mean(dim=1, keepdim=True)).flatten()
    torch.testing.assert_close(output["advantages"], expected, rtol=1e-4, atol=1e-5)
    assert list(trainer._logs["advantages"]) == pytest.approx(expected.tolist(), abs=1e-4)
    # The loss has no KL term: on-policy its mean over rows is the mean advantage.
    assert logged(trainer, "loss")[0] != 0.0


# Rewards.


def test_self_certainty_is_the_mean_kl_to_uniform(model, tmp_path):
    reward = SelfCertainty()
    trainer = extended(
        model, tmp_path, reward=[wordy, reward], reward_weights=[0.0, 1.0], max_steps=1, temperature=0.8,
        mask_truncated_completions=True,
    )  # fmt: skip
    seen = generations(trainer)
    policy = extended_start(model)
    trainer.train()
    inputs, output = seen[0]
    from transformers import LlamaForCausalLM

    fresh = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    fresh.load_state_dict(policy)
    values = []
    for row in range(len(inputs)):
        prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()]
        answer = output["completion_ids"][row]
        answer = answer[: int((answer == 1).int().argmax()) + 1] if (answer == 1).any() else answer
        logits = fresh(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1] / 0.8
        uniform = -math.log(logits.shape[-1])
        values.append((uniform - logits.log_softmax(-1).mean(-1)).mean().item())
    logged_values = list(trainer._logs["rewards"]["self_certainty"])
    assert logged_values == pytest.approx(values, rel=1e-3, abs=1e-5)
    assert logged(trainer, "rewards/self_certainty/mean")[0] == pytest.approx(statistics.fmean(values), rel=1e-3)
    assert logged(trainer, "reward")[0] == pytest.approx(statistics.fmean(values), rel=1e-3)
    groups = torch.tensor(values).view(-1, GROUP)
    expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(output["advantages"], expected.flatten(), rtol=5e-2, atol=1e-2)


def test_self_certainty_is_refused_by_the_stock_trainer(model, tmp_path):
    with pytest.raises(TypeError, match="use ExtendedGRPOTrainer, or another reward"):
        stock(model, tmp_path, reward=SelfCertainty()).train()


def some_skipped(completions, **kwargs):
    return [None if text[:1] in ("1", "7", "s") else len(text) + text.count("#") for text in completions]


@pytest.mark.parametrize("settings", [{}, {"advantage_clip": 100.0}, {"scale_rewards": "batch"}], ids=str)
def test_rows_without_a_reward_have_no_part(settings, model, tmp_path):
    """Whether the advantages are TRL's or ours, with the callback for stock trainers or without."""
    results = []
    for callbacks in ([], [ExcludeSkipped()]):
        trainer = extended(model, tmp_path, reward=some_skipped, max_steps=2, callbacks=callbacks, **settings)
        seen = generations(trainer)
        trainer.train()
        rewards = torch.tensor(list(trainer._logs["rewards"]["some_skipped"]))
        assert 0 < rewards.isnan().sum() < len(rewards)
        groups = rewards.view(-1, GROUP)
        centred = groups - groups.nanmean(dim=1, keepdim=True)
        advantages = seen[-1][1]["advantages"].view(-1, GROUP)
        assert (advantages[groups.isnan()] == 0).all()
        several = (~groups.isnan()).sum(dim=1) > 1
        known = ~groups.isnan() & several[:, None]
        assert (advantages[known].sign() == centred[known].sign()).all()
        assert logged(trainer, "reward")[-1] == pytest.approx(rewards.nanmean().item(), rel=1e-5)
        results.append(parameters(trainer))
    assert_same(*results, tolerance=0.0)


# Groups and rows.


def by_prompt(prompts, completions, **kwargs):
    """Half of the prompts have nothing to compare."""
    pairs = zip(prompts, completions, strict=True)
    return [1.0 if prompt[0] in "s7" else float(len(text) + text.count("#")) for prompt, text in pairs]


WIDE = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "reward": by_prompt, "max_steps": 1}


def leave_the_reference(trainer):
    """Change the policy, so that its KL divergence to the reference is not 0."""
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(4.0)
    return trainer


@pytest.mark.parametrize("backend", ["auto", "extended"])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_dropped_groups_leave_the_loss_of_the_others(loss_type, backend, model, tmp_path):
    """The loss is TRL's of a batch that holds the other rows only."""
    settings = WIDE | {"loss_type": loss_type, "beta": 0.3}
    trainer = extended(model, tmp_path, zero_variance_groups="drop", loss_backend=backend, **settings)
    seen = watch(leave_the_reference(trainer))
    trainer.train()
    inputs, loss = seen[0]
    alive = inputs["completion_mask"].sum(dim=1) > 0
    assert len(alive) == 16 and 0 < alive.sum() < 16
    others = {name: value[alive] for name, value in inputs.items() if isinstance(value, torch.Tensor) and value.dim()}
    others["num_items_in_batch"] = others["completion_mask"].sum()
    theirs = leave_the_reference(stock(model, tmp_path, **settings))
    theirs.current_gradient_accumulation_steps = 1
    theirs.model.train()
    assert theirs._compute_loss(theirs.model, others).item() == pytest.approx(loss, rel=1e-4, abs=1e-6)
    assert abs(loss) > 1e-4


@pytest.mark.parametrize("policy, moves", [("keep", True), ("keep_for_normaliser", False), ("drop", False)])
def test_dead_groups_and_their_kl_term(policy, moves, model, tmp_path):
    def equal(completions, **kwargs):
        return [1.0] * len(completions)

    settings = WIDE | {"reward": equal, "beta": 0.5, "loss_type": "grpo", "max_grad_norm": 1.0}
    trainer = extended(model, tmp_path, zero_variance_groups=policy, **settings)
    leave_the_reference(trainer)
    before = parameters(trainer)
    trainer.train()
    changed = max((parameters(trainer)[name] - value).abs().max().item() for name, value in before.items())
    assert (changed > 1e-3) == moves
    assert logged(trainer, "groups/dead_share") == [1.0]
    assert logged(trainer, "groups/constant") == [4.0]


@pytest.mark.parametrize("name", ["shortest", f"{LOSS}:longest"])
def test_filtered_rows_have_advantage_0_and_no_share_in_the_baseline(name, model, tmp_path):
    trainer = extended(model, tmp_path, group_filter=name, group_filter_keep=2, max_steps=1)
    seen = generations(trainer)
    trainer.train()
    output = seen[0][1]
    lengths = output["completion_mask"].sum(dim=1).view(-1, GROUP)
    rewards = torch.tensor(list(trainer._logs["rewards"]["wordy"])).view(-1, GROUP)
    for length, reward, advantage in zip(lengths, rewards, output["advantages"].view(-1, GROUP), strict=True):
        order = sorted(range(GROUP), key=lambda row: length[row].item() * (-1 if "longest" in name else 1))
        kept = reward[order[:2]]
        expected = torch.zeros(GROUP)
        expected[order[:2]] = (kept - kept.mean()) / (kept.std() + 1e-4)
        torch.testing.assert_close(advantage, expected, rtol=1e-3, atol=1e-4)
    assert logged(trainer, "groups/filtered_share") == [0.5]
    assert trainer.evaluate()["eval_loss"] is not None


# Drawing again.


def test_dead_groups_make_room_for_other_prompts(model, tmp_path):
    # Sixteen prompts: four are in use at a time.
    names = [f"{prompt}{'17#a'[i // 4 % 4]} " for i, prompt in enumerate(rows()["prompt"])]
    data = Dataset.from_dict({"prompt": names})
    settings = WIDE | {"data": data, "max_steps": 3, "num_iterations": 1}
    trainer = extended(model, tmp_path, dynamic_sampling_rounds=3, **settings)
    seen = generations(trainer)
    trainer.train()
    outer = [output for inputs, output in seen if inputs is not True]
    inner = [output for inputs, output in seen if inputs is True]
    assert len(outer) == 3 and inner, "redrawn rows pass through what is wrapped around the trainer"
    assert sum(logged(trainer, "sampling/groups_replaced")) > 0
    assert max(logged(trainer, "sampling/rounds")) <= 3
    replaced, left = logged(trainer, "sampling/groups_replaced"), logged(trainer, "sampling/dead_share_left")
    dead = logged(trainer, "groups/dead_share")
    assert [d * 4 - r for d, r in zip(dead, replaced, strict=True)] == pytest.approx([share * 4 for share in left])
    table = trainer._logs
    prompts, texts = list(table["prompt"]), list(table["completion"])
    assert len(prompts) == len(texts) == 16
    rewards = list(table["rewards"]["by_prompt"])
    # The table, the rewards and the advantages are those of the rows that were trained on.
    assert rewards == by_prompt([prompt.strip() for prompt in prompts], texts)
    groups = torch.tensor(rewards).view(-1, GROUP)
    expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(outer[-1]["advantages"], expected.flatten(), rtol=1e-3, atol=1e-3)
    decoded = trainer.processing_class.batch_decode(outer[-1]["completion_ids"], skip_special_tokens=True)
    assert decoded == texts
    assert outer[-1]["num_items_in_batch"] == outer[-1]["completion_mask"].sum()


def test_the_logged_reward_is_that_of_the_first_draw(model, tmp_path):
    """Redrawn groups are chosen for their spread: a mean over them says nothing of the policy."""
    plain = trained(extended(model, tmp_path, **WIDE))
    drawn = trained(extended(model, tmp_path, dynamic_sampling_rounds=2, **WIDE))
    assert logged(drawn, "sampling/groups_redrawn")[0] > 0
    for name in ("reward", "reward_std", "groups/dead_share", "completions/mean_length", "frac_reward_zero_std"):
        assert logged(drawn, name) == pytest.approx(logged(plain, name)), name
    assert logged(drawn, "num_tokens")[0] > logged(plain, "num_tokens")[0]


def test_a_dataset_without_other_prompts_ends_the_drawing(model, tmp_path):
    trainer = trained(extended(model, tmp_path, dynamic_sampling_rounds=5, **WIDE | {"data": rows().select(range(4))}))
    assert logged(trainer, "sampling/rounds") == [0.0]


def test_images_and_missing_columns_are_refused_before_anything_is_loaded(model, tmp_path):
    with pytest.raises(ValueError, match="works without images only"):
        extended(model, tmp_path, dynamic_sampling_rounds=1, data=rows(image=[1]))
    with pytest.raises(ValueError, match=r"curriculum_column='level' is not a column .* has \['prompt'\]"):
        extended(model, tmp_path, curriculum_column="level")


# Evaluation.


def test_the_temperature_of_an_evaluation(model, tmp_path):
    trainer = extended(model, tmp_path, eval_temperature=0.0, max_steps=1, per_device_eval_batch_size=8)
    sampling = trainer.generation_config
    texts = []
    for _ in range(2):
        trainer.evaluate()
        texts.append(list(trainer._logs["completion"]))
    assert texts[0] == texts[1] and len(set(texts[0][:GROUP])) == 1
    assert trainer.generation_config is sampling and trainer.temperature == 1.0
    trainer.train()
    assert len(set(trainer._logs["completion"])) > 2


# Metrics.


def test_metrics_have_one_name_and_one_meaning(model, tmp_path):
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_iterations": 2}
    trainer = extended(model, tmp_path, max_steps=2, beta=0.1, **settings)
    seen = watch(trainer)
    passes = []
    logps = trainer._get_per_token_logps_and_entropies

    def recorded(*args, **kwargs):
        result = logps(*args, **kwargs)
        passes.append((result[0].detach(), result[1]))
        return result

    trainer._get_per_token_logps_and_entropies = recorded
    trainer.train()
    (_, _), (inputs, _) = seen
    now, entropies = passes[-1]
    mask = inputs["completion_mask"].bool()
    ratio = torch.exp(now - inputs["old_per_token_logps"])[mask]
    signs = inputs["advantages"][:, None].expand_as(mask)[mask].sign()
    delta = (inputs["ref_per_token_logps"] - now)[mask]
    expected = {
        "clip_ratio/low_mean": ((ratio < 0.8) & (signs < 0)).float().mean(),
        "clip_ratio/high_mean": ((ratio > 1.2) & (signs > 0)).float().mean(),
        "ratio/min": ratio.min(),
        "ratio/max": ratio.max(),
        "ratio/effective_sample_size": ratio.sum() ** 2 / len(ratio) / ratio.square().sum(),
        "entropy": entropies[mask].mean(),
        "kl": (delta.exp() - delta - 1).mean(),
    }
    for name, value in expected.items():
        assert logged(trainer, name)[1] == pytest.approx(value.item(), rel=1e-3, abs=1e-6), name
    rewards = torch.tensor(list(trainer._logs["rewards"]["wordy"]))
    assert logged(trainer, "reward_std")[0] == pytest.approx(
        rewards.view(-1, GROUP).std(dim=1).mean().item(), rel=1e-4
    )
    assert logged(trainer, "reward_std_all")[0] == pytest.approx(rewards.std().item(), rel=1e-4)
    texts = list(trainer._logs["completion"])
    assert logged(trainer, "completions/truncated_share")[0] == logged(trainer, "completions/clipped_ratio")[0]
    assert len(texts) == 2 * GROUP


@pytest.mark.parametrize("kind", ["soft", "none", "kl_cov", "clip_cov"])
def test_every_clip_kind_trains(kind, model, tmp_path, ours_only):
    trainer = extended(model, tmp_path, clip_kind=kind, num_iterations=2, max_steps=2)
    before = parameters(trainer)
    trainer.train()
    assert_moved(parameters(trainer), before)
    assert len(ours_only) == 4

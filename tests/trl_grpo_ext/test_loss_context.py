"""`loss_context: plain`: sampled with experiences in the prompt, learned without; both lines."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rescue_runs import (
    encoded,
    largest_difference,
    logged,
    logps_under,
    make_model,
    make_trainer,
    parameters,
    prompts_of,
    rows,
    watch,
    watch_loss,
)

from trl_grpo_ext import ExtendedGRPOConfig
from trl_grpo_ext.losses import LossConfig, LossInputs, policy_loss
from trl_grpo_ext.off_policy import correction_weights, left_padded, plain_rows, reweighted

HINT = "please shift 3 "
INJECTED = {"prompt": lambda i: HINT + f"what is {i % 10}", "plain_prompt": lambda i: f"what is {i % 10}"}


def injected(count=40, every=1):
    """Rows with a hint in the prompt; with `every` 2, the other rows have none."""
    plain = {"plain_prompt": lambda i: f"what is {i % 10}" if i % every == 0 else None}
    return rows(count, prompt=lambda i: (HINT if i % every == 0 else "") + f"what is {i % 10}", **plain)


def wordy(completions, **kwargs):
    return [len(text) + 3.0 * text.count("7") for text in completions]


# The mathematics.


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-12, 0), st.floats(-12, 0)), min_size=1, max_size=6),
    st.floats(-2, 2),
    st.sampled_from(["truncate", "shape"]),
    st.floats(0.01, 5.0),
    st.floats(0.01, 5.0),
)
def test_off_policy_rows_have_the_gradient_of_the_corrected_objective(tokens, advantage, correction, cap, gamma):
    """shape: the autograd of LUFFY's f(r) A. truncate: min(r, cap) A grad log pi. The other row keeps PPO's."""
    new, old = (torch.tensor(column, dtype=torch.float64) for column in zip(*tokens, strict=True))
    logps = torch.stack([new, new]).requires_grad_()
    olds = torch.stack([old, old])
    given_inputs = LossInputs(logps, torch.tensor([advantage, advantage]), torch.ones_like(olds), olds)
    config = LossConfig(loss_type="grpo")
    changed = reweighted(given_inputs, torch.tensor([1, 0]), correction, cap, gamma)
    (ours,) = torch.autograd.grad(policy_loss(changed, config).loss, logps)
    (ppo,) = torch.autograd.grad(policy_loss(given_inputs, config).loss, logps)
    ratio = torch.exp((logps[0] - old).clamp(-20, 20))
    weight = ratio.detach().clamp(max=cap)
    objective = ratio / (ratio + gamma) if correction == "shape" else weight * logps[0]
    (expected,) = torch.autograd.grad(-(advantage * objective).mean() / 2, logps)
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours[1], ppo[1])


def test_weights_by_hand():
    log_ratio = torch.tensor([[0.0, math.log(3.0), math.log(0.1)]])
    expected = [[1.0, 2.0, 0.1]]
    torch.testing.assert_close(correction_weights(log_ratio, "truncate", 2.0, 0.1), torch.tensor(expected))
    # r gamma / (r + gamma)^2; the largest weight, 1/4, is that of r = gamma.
    expected = [[0.1 / 1.21, 0.3 / 3.1**2, 0.25]]
    torch.testing.assert_close(correction_weights(log_ratio, "shape", 2.0, 0.1), torch.tensor(expected))


def test_weights_multiply_those_of_another_sampler():
    shape = torch.zeros(2, 3)
    inputs = LossInputs(shape, torch.ones(2), torch.ones(2, 3), shape, importance_weights=torch.full((2, 1), 0.5))
    weights = reweighted(inputs, torch.tensor([0, 1]), "shape", 2.0, 0.1).importance_weights
    torch.testing.assert_close(weights[0], torch.full((3,), 0.5))
    torch.testing.assert_close(weights[1], torch.full((3,), 0.5 * 0.1 / 1.21))


@given(st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=5), st.sampled_from([1, 4, 8]))
def test_padding_on_the_left_loses_nothing(sequences, multiple):
    ids, mask = left_padded(sequences, 0, multiple)
    assert ids.shape[1] % multiple == 0
    assert [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)] == sequences
    assert all(kept.tolist() == sorted(kept.tolist()) for kept in mask)


# What the trainer tokenizes is what it generates from.

PREFILLED = [{"role": "user", "content": "what is 3"}, {"role": "assistant", "content": "9"}]
CHAT = [{"role": "system", "content": "please"}, {"role": "user", "content": "what is 7"}]


@pytest.mark.parametrize(
    "prompts",
    [["what is 3", "please shift what is 8"], [CHAT, [{"role": "user", "content": "1"}]], [PREFILLED, PREFILLED]],
    ids=["texts", "messages", "prefilled"],
)
def test_the_ids_of_a_prompt_are_those_that_it_is_generated_from(prompts, tmp_path):
    trainer = make_trainer(tmp_path, wordy)
    trainer.model.train()
    given_rows = [{"prompt": prompt} for prompt in prompts for _ in range(4)]
    expected = trainer.tokenize_prompts(given_rows)
    assert len(expected[0]) > 2
    output = trainer._generate_and_score_completions(given_rows)
    assert prompts_of(output) == expected


@pytest.mark.line_a
@pytest.mark.parametrize(("side", "kept"), [("left", "is 8"), ("right", "please shift")])
def test_the_ids_of_a_cut_prompt_too(side, kept, tmp_path):
    trainer = make_trainer(tmp_path, wordy, max_prompt_length=2)
    trainer.processing_class.truncation_side = side
    trainer.model.train()
    given_rows = [{"prompt": "please shift what is 8"}] * 4
    assert trainer.tokenize_prompts(given_rows) == encoded([kept]) * 4
    assert prompts_of(trainer._generate_and_score_completions(given_rows)) == encoded([kept]) * 4


# Training.


@pytest.mark.parametrize("conversational", [False, True], ids=["texts", "messages"])
def test_completions_are_learned_with_the_plain_prompt(conversational, tmp_path):
    def prompt(text):
        return [{"role": "user", "content": text}] if conversational else text

    data = rows(
        prompt=lambda i: prompt(HINT + f"what is {i % 10}"), plain_prompt=lambda i: prompt(f"what is {i % 10}")
    )
    trainer = make_trainer(tmp_path, lambda completions, **kwargs: [1.0, 0.0] * 8, data, loss_context="plain")
    seen, losses = watch(trainer), watch_loss(trainer)
    trainer.train()
    (inputs, batch), start = seen[0], make_model()
    plain = trainer.tokenize_prompts([row | {"prompt": row["plain_prompt"]} for row in inputs])
    hinted = trainer.tokenize_prompts(inputs)
    assert plain != hinted and prompts_of(batch) == plain
    assert batch["off_policy"].tolist() == [1] * 16
    mask = batch["completion_mask"].bool()
    expected = logps_under(start, hinted, batch).detach()
    torch.testing.assert_close(batch["old_per_token_logps"][mask], expected[mask], rtol=1e-4, atol=1e-5)
    assert sorted(map(tuple, prompts_of(losses[0]))) == sorted(map(tuple, plain))
    ratios = torch.exp(logps_under(start, plain, batch).detach() - expected)[mask]
    assert logged(trainer, "ratio/max")[0] == pytest.approx(ratios.max().item(), rel=1e-3)
    assert logged(trainer, "off_policy/share") == [1.0]


@pytest.mark.parametrize("correction", ["clip", "truncate", "shape"])
def test_the_gradient_is_the_corrected_one(correction, tmp_path):
    """One step of plain SGD moves the parameters by the learning rate times the gradient of the stated objective."""
    trainer = make_trainer(
        tmp_path,
        lambda completions, **kwargs: [1.0, 0.0, 0.0, 1.0] * 4,
        injected(every=2),
        loss_context="plain",
        off_policy_correction=correction,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        weight_decay=0.0,
    )
    seen = watch(trainer)
    trainer.train()
    inputs, batch = seen[0]
    off_policy = torch.tensor([float(row["plain_prompt"] is not None) for row in inputs])
    assert batch["off_policy"].tolist() == off_policy.tolist() and 0 < off_policy.sum() < 16
    model = make_model()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    logps = logps_under(model, prompts_of(batch), batch)
    ratio = torch.exp(logps - batch["old_per_token_logps"])
    advantages = batch["advantages"].unsqueeze(1)
    clipped = torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    corrected = {
        "clip": clipped,
        "truncate": ratio.detach().clamp(max=2.0) * logps * advantages,
        "shape": ratio / (ratio + 0.1) * advantages,
    }[correction]
    objective = torch.where(off_policy.bool().unsqueeze(1), corrected, clipped)
    counted = batch["completion_mask"]
    loss = -((objective * counted).sum(1) / counted.sum(1)).mean()
    loss.backward()
    after = parameters(trainer)
    moved = max(value.grad.abs().max().item() for value in model.parameters())
    assert moved > 1e-3
    for name, value in model.named_parameters():
        torch.testing.assert_close(before[name] - value.grad, after[name], rtol=1e-3, atol=2e-5 * max(moved, 1.0))


def test_a_batch_without_experiences_trains_as_trl_does(tmp_path):
    plain = make_trainer(tmp_path, wordy, max_steps=3, loss_context="plain")
    plain.train()
    stock = make_trainer(tmp_path, wordy, max_steps=3, stock=True)
    stock.train()
    assert largest_difference(parameters(plain), parameters(stock)) < 1e-6
    assert logged(plain, "off_policy/share") == [0.0] * 3


def test_the_reference_sees_the_plain_prompt(tmp_path):
    trainer = make_trainer(tmp_path, wordy, injected(), loss_context="plain", beta=0.1, model=saved_model(tmp_path))
    seen = watch(trainer)
    trainer.train()
    inputs, batch = seen[0]
    mask = batch["completion_mask"].bool()
    expected = logps_under(make_model(), encoded([row["plain_prompt"] for row in inputs]), batch).detach()
    torch.testing.assert_close(batch["ref_per_token_logps"][mask], expected[mask], rtol=1e-4, atol=1e-5)
    assert trainer.beta == 0.1 and logged(trainer, "kl")[0] == pytest.approx(0.0, abs=1e-5)


def saved_model(folder):
    """TRL loads the reference by its name."""
    from transformers import LlamaForCausalLM

    from trl_grpo_ext import prepare_model

    make_model().save_pretrained(folder / "model")
    return prepare_model(LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32))


def test_the_reference_of_an_adapter_is_the_model_without_it(tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    settings = {"loss_context": "plain", "beta": 0.1, "options": {"peft_config": lora}}
    trainer = make_trainer(tmp_path, wordy, injected(), **settings)
    seen = watch(trainer)
    trainer.train()
    inputs, batch = seen[0]
    mask = batch["completion_mask"].bool()
    expected = logps_under(make_model(), encoded([row["plain_prompt"] for row in inputs]), batch).detach()
    torch.testing.assert_close(batch["ref_per_token_logps"][mask], expected[mask], rtol=1e-4, atol=1e-5)


def test_rewards_see_the_plain_prompt(tmp_path):
    calls = []

    def reward(prompts, completions, **kwargs):
        calls.append((prompts, sorted(kwargs)))
        return [0.0] * len(prompts)

    for context in ("plain", "injected"):
        make_trainer(tmp_path, reward, injected(), loss_context=context).train()
    for prompts, names in calls:
        assert all(prompt.startswith("what is") for prompt in prompts) and "plain_prompt" not in names


def test_what_rewards_see_of_prefilled_prompts():
    """TRL 0.24 has taken the beginning of the answer away from the prompt by then."""
    hinted = [{"role": "system", "content": "hint"}, *PREFILLED]
    row = {"prompt": hinted[:-1], "plain_prompt": PREFILLED, "solution": "3"}
    assert plain_rows([row], [hinted[:-1]]) == ([{"prompt": PREFILLED[:1], "solution": "3"}], [PREFILLED[:1]])
    row["prompt"] = hinted
    assert plain_rows([row], [hinted]) == ([{"prompt": PREFILLED, "solution": "3"}], [PREFILLED])


def test_with_dynamic_sampling_and_several_iterations(tmp_path):
    """Rows that are drawn again carry the same columns; old log-probabilities stay those of sampling."""

    def by_prompt(prompts, completions, **kwargs):
        return [0.0 if prompt[-1] in "02468" else float(i % 2) for i, prompt in enumerate(prompts)]

    settings = {"dynamic_sampling_rounds": 2, "num_iterations": 2, "max_steps": 4, "off_policy_correction": "shape"}
    trainer = make_trainer(tmp_path, by_prompt, injected(), loss_context="plain", **settings)
    seen = watch(trainer)
    trainer.train()
    assert sum(logged(trainer, "sampling/groups_replaced")) > 0
    for _, batch in seen:
        known = {tuple(ids) for ids in encoded([f"what is {digit}" for digit in range(10)])}
        assert {tuple(ids) for ids in prompts_of(batch)} <= known
        assert batch["off_policy"].tolist() == [1] * 16


def test_evaluation_is_left_alone(tmp_path):
    trainer = make_trainer(tmp_path, wordy, injected(), loss_context="plain")
    trainer.eval_dataset = injected(4)
    seen = watch(trainer)
    trainer.evaluate()
    assert all("off_policy" not in batch and len(prompts_of(batch)[0]) > 3 for _, batch in seen)


# Refusals.


@pytest.mark.parametrize(
    ("given_settings", "match"),
    [
        ({"loss_context": "none"}, "loss_context must be one of injected, plain"),
        ({"off_policy_correction": "mask"}, "off_policy_correction must be one of clip, truncate, shape"),
        ({"off_policy_cap": 3.0}, "off_policy_cap=3.0 does nothing with off_policy_correction='clip'"),
        ({"off_policy_correction": "truncate", "off_policy_cap": 0.0}, "off_policy_cap must be a finite number above"),
        ({"off_policy_correction": "shape", "off_policy_gamma": -1.0}, "off_policy_gamma must be a finite number"),
        ({"off_policy_correction": "truncate", "off_policy_gamma": 0.2}, "off_policy_gamma=0.2 does nothing"),
        ({"off_policy_correction": "shape", "importance_sampling_level": "sequence"}, "it needs importance_sampling_"),
        ({"off_policy_correction": "shape", "clip_anchor": "both"}, "it needs clip_anchor='old'"),
        ({"loss_context": "plain", "kl_place": "reward", "beta": 0.1}, "does not work with kl_place='reward'"),
        ({"loss_context": "plain", "clip_anchor": "reference"}, "does not work with clip_anchor='reference'"),
    ],
    ids=str,
)
def test_what_can_t_work_is_refused_in_the_config(given_settings, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        ExtendedGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **given_settings)


def test_what_can_t_work_is_refused_before_a_model_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="off_policy_correction='shape' does nothing here"):
        make_trainer(tmp_path, wordy, model="no/such/model", off_policy_correction="shape")
    for name in ("environment_factory", "rollout_func"):
        with pytest.raises(ValueError, match=f"{name} makes others"):
            make_trainer(tmp_path, wordy, model="no/such/model", loss_context="plain", options={name: lambda: None})
    images = rows(image=lambda i: "picture.png")
    with pytest.raises(ValueError, match="works without images only"):
        make_trainer(tmp_path, wordy, images, model="no/such/model", loss_context="plain")

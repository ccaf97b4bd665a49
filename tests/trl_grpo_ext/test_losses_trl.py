"""Our loss and advantages beside those of a real `GRPOTrainer`: same value, same gradient, where settings coincide."""

import importlib
from types import MethodType

import pytest
import torch

from trl_grpo_ext import config_kwargs, import_trl, prepare_model
from trl_grpo_ext._compat import trl_version
from trl_grpo_ext.advantages import AdvantageConfig, group_advantages
from trl_grpo_ext.losses import LossConfig, LossInputs, dapo_num_items, policy_loss

ROWS, TOKENS = 4, 6
ACCUMULATION, STEPS_PER_GENERATION, ITEMS, LONGEST = 2, 4, 150, 9
ENTROPY_QUANTILE = 0.4


@pytest.fixture
def make_trainer(tiny_model, tiny_tokenizer, tmp_path):
    from datasets import Dataset

    def make(trainer_class=None, config_class=None, reward=None, **options):
        trl = import_trl()
        settings = config_kwargs(
            output_dir=str(tmp_path / "out"),
            max_steps=1,
            per_device_train_batch_size=ROWS,
            gradient_accumulation_steps=ACCUMULATION,
            steps_per_generation=STEPS_PER_GENERATION,
            num_generations=ROWS,
            max_completion_length=LONGEST,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        # With a KL coefficient TRL loads the reference model from where the model came from.
        tiny_model.save_pretrained(tmp_path / "model")
        model = type(tiny_model).from_pretrained(tmp_path / "model")
        rows = Dataset.from_list([{"prompt": "say "}] * 2 * ROWS * STEPS_PER_GENERATION)
        trainer = (trainer_class or trl.GRPOTrainer)(
            model=prepare_model(model),
            reward_funcs=reward or (lambda completions, **_: [float(len(text)) for text in completions]),
            args=(config_class or trl.GRPOConfig)(**settings | options),
            train_dataset=rows,
            processing_class=tiny_tokenizer,
        )
        # What `train()` sets before the first loss.
        trainer.current_gradient_accumulation_steps = ACCUMULATION
        return trainer

    return make


def micro_batch(seed=0, truncated_row=False):
    generator = torch.Generator().manual_seed(seed)

    def normal(scale=1.0):
        return scale * torch.randn(ROWS, TOKENS, generator=generator)

    lengths = torch.tensor([6, 0 if truncated_row else 3, 1, 4])
    logps = normal() - 2
    return {
        "logps": logps.requires_grad_(),
        "old_logps": logps.detach() + normal(0.4),
        "ref_logps": logps.detach() + normal(0.4),
        "entropies": normal().exp(),
        "mask": (torch.arange(TOKENS) < lengths.unsqueeze(1)).int(),
        "advantages": torch.tensor([1.3, -0.8, 0.6, -1.1]),
    }


def loss_of_trl(trainer, batch, **more):
    """The trainer's own `_compute_loss` on log-probabilities that are given."""

    def given(self, *args, **kwargs):
        return (batch["logps"], batch["entropies"], None)[: 2 if trl_version() < (1, 7) else 3]

    trainer._get_per_token_logps_and_entropies = MethodType(given, trainer)
    prompt = torch.ones(ROWS, 2, dtype=torch.long)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": prompt,
        "completion_ids": torch.ones(ROWS, TOKENS, dtype=torch.long),
        "completion_mask": batch["mask"],
        "old_per_token_logps": batch["old_logps"],
        "ref_per_token_logps": batch["ref_logps"],
        "advantages": batch["advantages"],
        "num_items_in_batch": torch.tensor(ITEMS),
    }
    trainer.model.train()
    return trainer._compute_loss(trainer.model, inputs | more)


def our_loss(trainer, batch, config, **more):
    # TRL 0.24 divides by the items of the whole generation batch.
    steps = (ACCUMULATION, STEPS_PER_GENERATION) if trl_version() >= (1, 10) else (1, 1)
    inputs = LossInputs(
        **batch,
        num_items=dapo_num_items(torch.tensor(ITEMS), 1, *steps),
        accumulation_steps=ACCUMULATION,
        max_completion_length=LONGEST,
        **more,
    )
    return policy_loss(inputs, config)


def assert_same(trainer, batch, config, more_of_trl=None, **more):
    theirs = loss_of_trl(trainer, batch, **more_of_trl or {})
    ours = our_loss(trainer, batch, config, **more)
    torch.testing.assert_close(ours.loss, theirs)
    gradients = [torch.autograd.grad(loss, batch["logps"])[0] for loss in (ours.loss, theirs)]
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[1].abs().sum() > 0
    return ours


OPTIONS = {
    "default": {},
    "asymmetric": {"epsilon_high": 0.5},
    "delta": {"delta": 1.5},
    "small delta": {"delta": 1.1},
    "sequence": {"importance_sampling_level": "sequence", "epsilon": 0.05},
    "kl": {"beta": 0.2},
    "kl and sequence": {"beta": 0.2, "importance_sampling_level": "sequence"},
}


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_same_loss_and_gradient(make_trainer, loss_type, options):
    trainer = make_trainer(loss_type=loss_type, **options)
    corrected = getattr(trainer.args, "use_bias_correction_kl", False)
    config = LossConfig(loss_type=loss_type, use_bias_correction_kl=corrected, **options)
    ours = assert_same(trainer, micro_batch(), config)
    for name in ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "entropy"):
        if options.get("delta") != 1.1:  # TRL measures after delta, which is inside the range here
            assert ours.metrics[name].item() == pytest.approx(trainer._metrics["train"][name][-1]), name
    if options.get("beta") and not corrected:
        assert ours.metrics["kl"].item() == pytest.approx(trainer._metrics["train"]["kl"][-1])


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_same_with_a_fully_masked_row(make_trainer, loss_type):
    assert_same(make_trainer(loss_type=loss_type), micro_batch(1, truncated_row=True), LossConfig(loss_type=loss_type))


def test_same_without_old_log_probabilities(make_trainer):
    assert_same(make_trainer(loss_type="grpo"), micro_batch(2) | {"old_logps": None}, LossConfig(loss_type="grpo"))


def test_same_with_a_mask_on_entropies(make_trainer):
    trainer = make_trainer(loss_type="grpo", beta=0.1, top_entropy_quantile=ENTROPY_QUANTILE)
    batch = micro_batch(3)
    corrected = getattr(trainer.args, "use_bias_correction_kl", False)
    entropy_mask = trainer.get_high_entropy_mask(batch["entropies"], batch["mask"], 1 - ENTROPY_QUANTILE)
    config = LossConfig(loss_type="grpo", beta=0.1, use_bias_correction_kl=corrected)
    assert_same(trainer, batch, config, entropy_mask=entropy_mask)


def test_same_with_importance_weights_of_another_sampler(make_trainer):
    trainer = make_trainer(loss_type="grpo")
    trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, True
    weights = torch.rand(ROWS, TOKENS, generator=torch.Generator().manual_seed(0)) * 2
    assert_same(
        trainer,
        micro_batch(4),
        LossConfig(loss_type="grpo"),
        more_of_trl={"importance_sampling_ratio": weights},
        importance_weights=weights,
    )


@pytest.mark.line_b
def test_same_as_sapo(make_trainer):
    trainer = make_trainer(loss_type="sapo")
    assert_same(trainer, micro_batch(5), LossConfig(loss_type="grpo", clip_kind="soft"))


@pytest.mark.line_b
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_same_as_gmpo(make_trainer, beta):
    gmpo = importlib.import_module("trl.experimental.gmpo")
    trainer = make_trainer(gmpo.GMPOTrainer, gmpo.GMPOConfig, epsilon=0.3, epsilon_high=0.4, beta=beta)
    config = LossConfig(
        loss_type="grpo", importance_sampling_level="geometric", epsilon=0.3, epsilon_high=0.4, beta=beta
    )
    ours = assert_same(trainer, micro_batch(6), config)
    for name in ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"):
        assert ours.metrics[name].item() == pytest.approx(trainer._metrics["train"][name][-1]), name


@pytest.mark.line_b
def test_same_with_token_advantages(make_trainer):
    batch = micro_batch(7)
    batch["advantages"] = torch.randn(ROWS, TOKENS, generator=torch.Generator().manual_seed(1))
    assert_same(make_trainer(loss_type="grpo"), batch, LossConfig(loss_type="grpo"))


@pytest.mark.line_a
def test_same_as_gspo_token(make_trainer):
    import_trl()
    module = importlib.import_module("trl.experimental.gspo_token")
    trainer = make_trainer(module.GRPOTrainer, loss_type="grpo", epsilon=0.05)
    # The experimental trainer has the level, but the stock config does not list it.
    trainer.importance_sampling_level = "sequence_token"
    config = LossConfig(loss_type="grpo", importance_sampling_level="sequence_token", epsilon=0.05)
    assert_same(trainer, micro_batch(8), config)


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_same_advantages_in_a_training_run(make_trainer, scale_rewards):
    trainer = make_trainer(scale_rewards=scale_rewards, learning_rate=0.0)
    seen = []
    stock = trainer._calculate_rewards

    def calculate(inputs, *args):
        seen.append(stock(inputs, *args).sum(1))
        return stock(inputs, *args)

    trainer._calculate_rewards = calculate
    trainer.train()
    scale = {"group": "std", "batch": "batch", "none": "none"}[scale_rewards]
    ours = group_advantages(seen[-1], AdvantageConfig(num_generations=ROWS, scale=scale))
    theirs = torch.tensor(list(trainer._logs["advantages"]))
    assert len(set(seen[-1].tolist())) > 1
    torch.testing.assert_close(ours.cpu(), theirs)

"""The documents' formulas and pseudo-code, on a tiny Llama or on numbers, against this package's own functions."""

import unicodedata
from dataclasses import asdict, dataclass, is_dataclass
from math import exp
from statistics import fmean

import pytest
import torch

from tests.gym.catalogue import snippet, stored
from tests.gym.stage import Speaker, first_weight, has_four, make_model, rows
from trl_grpo_ext import AdvantageConfig, group_advantages
from trl_grpo_ext.gym import GRPOConfig, GRPOTrainer
from trl_grpo_ext.gym.translation import gradient_config

REWARDS = [1.0, 0.0, 1.0, 0.0, 1.0]
# The third document's epsilon, in the wrong encoding that it has; Python normalises names.
EPSILON = unicodedata.normalize("NFKC", "\u00ce\u00b5")


class Mean(torch.Tensor):
    """A mean that a list can be reduced by, as the third document does."""

    def __rsub__(self, other):
        return torch.as_tensor(other) - self.as_subclass(torch.Tensor)


def mean(values):
    """Of a list without its `...`, or of a tensor."""
    if isinstance(values, torch.Tensor):
        return values.mean()
    return torch.tensor([float(value) for value in values if value is not ...]).mean().as_subclass(Mean)


def std(values):
    values = values if isinstance(values, torch.Tensor) else [float(value) for value in values if value is not ...]
    return torch.as_tensor(values).std()


def ours(rewards, **settings):
    config = AdvantageConfig(num_generations=len(rewards), **settings)
    return group_advantages(torch.tensor(rewards), config).tolist()


@snippet("000", 51, "a tiny Llama behind model.generate(text), a reward of (query, response)")
def group_sampling(stage):
    names = stage.execute(model=Speaker(), reward_model=has_four)
    assert len(names["responses"]) == names["K"] == 5
    assert names["rewards"] == [has_four(names["query"], text) for text in names["responses"]]


@snippet("000", 74, "five rewards")
def relative_advantages(stage):
    names = stage.execute(rewards=REWARDS, K=5)
    assert names["advantages"] == pytest.approx(ours(REWARDS, scale="none"))


@snippet("000", 95, "two tiny Llamas with log_prob(query, response), SGD")
def policy_optimisation(stage):
    model, reference = Speaker(), Speaker()
    before = first_weight(model.llama)
    optimizer = torch.optim.SGD(model.llama.parameters(), lr=0.1)
    given = {"responses": ["4", "x4"], "advantages": [0.4, -0.6], "query": "2x = ", "clip_range": 0.2}
    names = stage.execute(model=model, ref_model=reference, torch=torch, optimizer=optimizer, **given)
    assert torch.isfinite(names["loss"]) and names["loss"].requires_grad
    assert not torch.equal(before, first_weight(model.llama))
    assert torch.equal(before, first_weight(reference.llama))


def only_comments(stage):
    defined = set(stage.execute()) - {"__builtins__"}
    assert all(line.startswith("#") or not line for line in stage.text.splitlines())
    assert defined == {"ExperimentConfig", "GRPOArguments", "GRPOConfig", "GRPOTrainer", "TrainingFreeGRPO"}


for _line in (122, 563, 571, 579):
    snippet("000", _line, "nothing: it is comments only")(only_comments)


@snippet("003", 29, "rewards of a group, functions mean and std")
def two_advantages(stage):
    state = {"reward": REWARDS[0], "group_rewards": REWARDS, "baseline_value_function": lambda state: 0.25}
    names = stage.execute(mean=mean, std=std, state=None, **state, **{EPSILON: 1e-4})
    assert float(names["advantage"]) == pytest.approx(ours(REWARDS, scale="std", eps=1e-4)[0])


@snippet("003", 44, "a tiny Llama, one prompt, torch's exp, clamp and minimum under the snippet's names")
def training_loop(stage):
    model, seen = Speaker(), {}

    def get_log_probs(responses, detached):
        found = torch.stack([model.log_prob("2x = ", text) for text in responses])
        return found.detach() if detached else found

    def reward_fn(prompt, response, answer):
        return len(seen.setdefault("responses", [])) + float(answer in response) if prompt else 0.0

    before = first_weight(model.llama)
    functions = {"mean": mean, "std": std, "exp": torch.exp, "clip": torch.clamp, "min": torch.minimum}
    given = {"dataset": ["2x = "], "N": 4, "answer": "4", "reward_fn": reward_fn, "get_log_probs": get_log_probs}
    optimizer = torch.optim.SGD(model.llama.parameters(), lr=0.1)
    # Where all four rewards are equal there is nothing to learn: another draw.
    for seed in range(5):
        torch.manual_seed(seed)
        names = stage.execute(model=model, optimizer=optimizer, **functions, **given, **{EPSILON: 0.2})
        if len(set(names["rewards"])) > 1:
            break
    expected = ours([float(reward) for reward in names["rewards"]], scale="std", eps=0.2)
    assert names["advantages"].tolist() == pytest.approx(expected) and any(expected)
    assert not torch.equal(before, first_weight(model.llama))


@snippet("003", 75, "rewards of a group, functions mean and std")
def group_normalisation(stage):
    values = dict(zip(("r1", "r2", "rN"), (2.0, 0.0, 1.0), strict=True))
    names = stage.execute(mean=mean, std=std, rewards=torch.tensor([2.0, 0.0, 1.0]), **values)
    assert names["advantages"].tolist() == pytest.approx(ours([2.0, 0.0, 1.0], scale="std", eps=1e-8))


@snippet("003", 85, "a log-probability with a gradient, one advantage of each sign")
def advantage_signs(stage):
    for advantage in (0.5, -0.5):
        log_prob = torch.tensor(-1.0, requires_grad=True)
        stage.execute(advantage=advantage, log_prob=log_prob)["loss"].backward()
        assert log_prob.grad.item() == -advantage


@snippet("003", 96, "two log-probabilities, torch's functions under the snippet's names")
def clipping(stage):
    numbers = {"log_prob_new": torch.tensor(0.5), "log_prob_old": torch.tensor(0.0), "advantage": 1.0, EPSILON: 0.2}
    names = stage.execute(exp=torch.exp, clip=torch.clamp, min=torch.minimum, **numbers)
    assert names["ratio"].item() == pytest.approx(exp(0.5))
    assert names["loss"].item() == pytest.approx(-1.2)


@snippet("003", 128, "nothing; its values then are the config of a real training on a tiny Llama")
def usual_values(stage):
    names = stage.execute()
    values = {
        name: names[name] for name in "num_generations clip_eps learning_rate gradient_accumulation beta".split()
    }
    config = GRPOConfig(**values, response_length=4, max_steps=1)
    trainer = GRPOTrainer(stage.saved("tiny"), config=config, reward_model=has_four, train_dataset=rows(8))
    trainer.train()
    args = trainer.args
    assert (args.num_generations, args.epsilon, args.learning_rate, args.beta) == (4, 0.2, 1e-5, 0.05)
    assert args.gradient_accumulation_steps == 4 and trainer.ref_model is not None


@snippet("003", 209, "none: its list is not Python, `1.0 = +1.0`; its figures are checked")
def four_responses(stage):
    with pytest.raises(SyntaxError):
        stage.execute(log_prob=lambda text: 0.0, loss={})
    rewards = [2.0, 0.0, 2.0, 0.0]
    assert f"rewards = {rewards}" in stored(stage.name)
    assert ours(rewards, scale="std", ddof=0, eps=1e-8) == pytest.approx([1.0, -1.0, 1.0, -1.0])


@snippet("004", 42, "a tiny Llama behind generate(), a reward of (prompt, completion)")
def group_advantages_of_completions(stage):
    model = Speaker()
    given = {"K": 4, "prompt": "2x = ", "reward_func": has_four, "mean": fmean}
    names = stage.execute(generate=lambda: model.generate("2x = "), **given)
    assert names["advantages"] == pytest.approx(ours(names["rewards"], scale="none"))


@snippet("004", 131, "a tiny Llama of transformers, a prompt's token ids")
def generation(stage):
    ids = stage.tokenizer("2x = ", return_tensors="pt")["input_ids"]
    names = stage.execute(torch=torch, model=make_model(), prompts=ids, response_length=4)
    assert ids.shape[1] < names["outputs"].shape[1] <= ids.shape[1] + 4


@snippet("004", 142, "a GRPOConfig without vLLM; with it, see 004:259")
def generation_with_vllm(stage):
    names = stage.execute(args=GRPOConfig(response_length=4))
    assert "outputs" not in names


@snippet("004", 162, "log-probabilities of two completions")
def policy_loss(stage):
    new = torch.tensor([-1.0, -2.0], requires_grad=True)
    given = {"model": None, "completions": None, "old_logprobs": torch.tensor([-1.5, -2.5])}
    functions = {"compute_logprobs": lambda model, completions: new, "exp": torch.exp, "log": torch.log}
    names = stage.execute(mean=torch.mean, advantages=torch.tensor([1.0, -3.0]), **given, **functions)
    names["policy_loss"].backward()
    assert new.grad.tolist() == pytest.approx([-0.5, 1.5])


@snippet("004", 175, "log-probabilities of two completions under both models")
def kl_penalty(stage):
    given = {"ref_model": None, "completions": None, "kl_coef": 0.05, "mean": torch.mean}
    reference = torch.tensor([-1.0, -1.0])
    functions = {"compute_logprobs": lambda model, completions: reference}
    names = stage.execute(new_logprobs=torch.tensor([0.0, 1.0]), **given, **functions)
    assert names["kl_loss"].item() == pytest.approx(0.05 * 1.5)


@snippet("004", 182, "two numbers")
def total_loss(stage):
    assert stage.execute(policy_loss=1.0, kl_loss=0.5)["loss"] == 1.5


@snippet("004", 204, "dataclasses.dataclass; its values then are the config of a real training on a tiny Llama")
def configuration(stage):
    defined = stage.execute(dataclass=dataclass)["GRPOConfig"]
    assert is_dataclass(defined)
    config = GRPOConfig(**asdict(defined()), max_steps=1)
    args = gradient_config(config)
    assert (args.num_generations, args.max_completion_length, args.beta, args.num_iterations) == (4, 128, 0.05, 1)
    assert args.num_train_epochs == GRPOConfig().num_train_epochs == 3.0
    trainer = GRPOTrainer(stage.saved("tiny"), config=config, reward_model=has_four, train_dataset=rows(8))
    trainer.train()
    # 16 rows of one device are four groups of four.
    assert trainer.state.global_step == 1 and trainer.args.generation_batch_size == 16

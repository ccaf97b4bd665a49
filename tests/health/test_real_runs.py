"""Every rule on a real training run that is built to break in its way: `trainer.train()`, no log written by hand.

Dead groups and a slow reward are in test_callback.py.
"""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conformance.runs import CHARACTERS, build_model, stock, trained, wordy
from trl_grpo_ext.evaluation import EvaluationCallback, Sampling
from trl_grpo_ext.health import RULES, HealthCallback


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def many_words(tmp_path_factory):
    """64 tokens, so that a policy can be more than 2 nats away from one that takes them all alike."""
    folder = tmp_path_factory.mktemp("many")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(build_model(folder), vocab_size=64)).save_pretrained(folder)
    return folder


def infinite(completions, **kwargs):
    return [float("inf") if place == 0 else 0.0 for place in range(len(completions))]


def sevens(completions, **kwargs):
    return [float(text.count("7")) for text in completions]


def shortest_of_its_group(completions, **kwargs):
    """A judge that ranks: its mean never moves, and it prefers what is short."""
    groups = [completions[start : start + 4] for start in range(0, len(completions), 4)]
    return [sum(map(len, group)) / len(group) - len(text) for group in groups for text in group]


def alternating(completions, **kwargs):
    """Says nothing of the completions, though no group is without spread."""
    return [float(place % 2) for place in range(len(completions))]


def hacked(completions, **kwargs):
    return [float(text.count("7") * 3 + len(text)) for text in completions]


def short(completions, **kwargs):
    return [float(text.count("7") <= 3) for text in completions]


def watching_hacks():
    problems = [{"prompt": f"{first}{second}"} for first in CHARACTERS for second in "17"]
    return EvaluationCallback(problems, [short], Sampling(samples=4, max_new_tokens=5, batch_size=64), ks=[1])


# Constant, so that a run does the same up to a step however many follow.
ADAM = {"optim": "adamw_torch", "lr_scheduler_type": "constant", "learning_rate": 0.1}
# Rule -> settings of its run, in which no other rule has anything to say.
BROKEN = {
    "not_finite": {"reward": infinite, "max_steps": 1},
    "reward_hacking": {
        **{"reward": hacked, "learning_rate": 3.0, "max_steps": 8, "eval_strategy": "steps", "eval_steps": 4},
        **{"per_device_eval_batch_size": 8, "eval_on_start": True},
    },
    # Later on its groups are dead, too.
    "entropy_collapse": {"reward": sevens, **ADAM, "max_steps": 11},
    "kl_divergence": {"reward": wordy, **ADAM, "beta": 1e-6, "max_steps": 12},
    "clipping": {"reward": wordy, **ADAM, "num_iterations": 4, "max_steps": 8},
    "reward_flat": {"reward": alternating, "learning_rate": 0.0, "max_steps": 50},
    "truncation": {"reward": alternating, "learning_rate": 0.0, "max_completion_length": 1, "max_steps": 30},
    # Warmed up: the first ten steps show the length that it starts from, and the last ones still differ in theirs.
    "length_drift": {
        **{"reward": shortest_of_its_group, **ADAM, "learning_rate": 0.01, "warmup_steps": 25},
        **{"lr_scheduler_type": "constant_with_warmup", "max_completion_length": 24, "max_steps": 30},
    },
}
FAST = {"not_finite", "reward_hacking"}


def test_every_rule_has_a_real_run():
    assert set(BROKEN) | {"dead_groups", "slow_reward"} == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in BROKEN]
)
def test_a_rule_fires_once_on_its_run_and_no_other_does(name, model, many_words, tmp_path):
    callback, others = HealthCallback(), [watching_hacks()] if name == "reward_hacking" else []
    start = many_words if name in ("kl_divergence", "truncation") else model
    trained(stock(start, tmp_path, callbacks=[*others, callback], **BROKEN[name]))
    assert [item.rule for item in callback.findings] == [name], [str(item) for item in callback.findings]

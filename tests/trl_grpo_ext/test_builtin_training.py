"""The configurable built-ins in a real `GRPOTrainer.train()`, with text and with message prompts."""

import pytest

from trl_grpo_ext import gsm8k_number
from trl_grpo_ext.rewards.formatting import tag_format
from trl_grpo_ext.rewards.games import countdown, game_of_24
from trl_grpo_ext.rewards.language import language_consistency
from trl_grpo_ext.rewards.lengths import CosineLength, RepetitionPenalty, SoftOverlong
from trl_grpo_ext.rewards.matching import multiple_choice, normalised_match, numeric_match
from trl_grpo_ext.rewards.math_answers import math_equal
from trl_grpo_ext.rewards.overlap import rouge_l
from trl_grpo_ext.rewards.structured import json_schema

ROWS = 64
NUMBERS = {"solution": "7", "nums": [7], "target": 7}
LETTERS = {"solution": "A", "nums": [24], "target": 24}
NUMBER_REWARDS = [
    numeric_match,
    normalised_match,
    math_equal,
    rouge_l,
    countdown,
    json_schema,
    language_consistency,
    SoftOverlong(max_length=2, cache_length=1),
    CosineLength(correctness=gsm8k_number, max_length=2),
    RepetitionPenalty(ngram_size=1),
]
# No tag and no 24 can be written with the alphabet of the tiny model: these two give 0.
CONSTANT = ("tag_format", "game_of_24")


class Recorded:
    """A reward that keeps what TRL called it with."""

    def __init__(self, reward):
        self.reward, self.__name__, self.__wrapped__ = reward, reward.__name__, reward

    def __call__(self, **arguments):
        self.arguments = arguments
        return self.reward(**arguments)


@pytest.fixture
def train(make_tiny_trainer):
    """Train one step and return the trainer."""

    def run(rewards, conversational, columns):
        prompt = [{"role": "user", "content": "say"}] if conversational else "say "
        trainer = make_tiny_trainer(
            rewards, [{"prompt": prompt, **columns}] * ROWS, 1, per_device_train_batch_size=ROWS
        )
        trainer.train()
        return trainer

    return run


@pytest.mark.parametrize("conversational", [False, True], ids=["text", "messages"])
@pytest.mark.parametrize(
    ("columns", "rewards"),
    [(NUMBERS, NUMBER_REWARDS), (LETTERS, [multiple_choice, tag_format, game_of_24])],
    ids=["numbers", "letters"],
)
def test_rewards_reach_the_trainer(train, columns, rewards, conversational):
    recorded = [Recorded(reward) for reward in rewards]
    trainer = train(recorded, conversational, columns)
    for reward in recorded:
        name = reward.__name__
        used = list(trainer._logs["rewards"][name])
        assert len(used) == ROWS
        assert used == pytest.approx(reward.reward(**reward.arguments))
        assert (len(set(used)) > 1) is (name not in CONSTANT)
    names = [reward.__name__ for reward in recorded]
    assert len(set(names)) == len(names)
    logged = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert {f"rewards/{name}/mean" for name in names} <= set(logged)


def test_a_missing_column_stops_before_training(train):
    with pytest.raises(ValueError, match="Reward function 'countdown' needs the argument 'target'"):
        train([countdown], False, {"nums": [7]})

"""The label-free composite in a real `GRPOTrainer.train()`: what it skips teaches nothing, the rest does."""

import pytest

from trl_grpo_ext.rewards.composition import RewardMetricsCallback
from trl_grpo_ext.rewards.label_free import SelfConsistencyReward, label_free_reward


@pytest.fixture
def train(make_tiny_trainer, tiny_model):
    """Train three steps; return whether the model changed, and the trainer's state."""

    def run(reward):
        before = tiny_model.lm_head.weight.detach().clone()
        rows = [{"prompt": f"say {'#' * i}"} for i in range(16)]
        settings = {"per_device_train_batch_size": 64, "num_generations": 8}
        trainer = make_tiny_trainer([reward], rows, callbacks=[RewardMetricsCallback(reward)], **settings)
        trainer.train()
        return not tiny_model.lm_head.weight.equal(before), trainer.state

    return run


def test_the_composite_trains_and_shows_its_parts(train):
    moved, state = train(label_free_reward())
    assert moved
    steps = [entry for entry in state.log_history if "loss" in entry]
    assert len(steps) == 3
    for name in ("label_free/self_consistency/weight", "self_consistency/agreement", "step_validity/steps"):
        assert all(name in entry for entry in steps), name
    assert all(entry["label_free/self_consistency/weight"] == 1.0 for entry in steps)


def test_skipped_groups_teach_nothing(train):
    moved, state = train(label_free_reward(consistency=SelfConsistencyReward(min_agreement=1.0, max_agreement=1.0)))
    assert not moved
    assert all(entry["self_consistency/skipped_groups"] == 1.0 for entry in state.log_history if "loss" in entry)

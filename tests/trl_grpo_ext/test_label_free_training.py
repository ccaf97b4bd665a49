"""The label-free composite in a real `GRPOTrainer.train()`: what it skips teaches nothing, the rest does."""

import pytest

from trl_grpo_ext import config_kwargs, import_trl, prepare_model
from trl_grpo_ext.rewards.composition import RewardMetricsCallback
from trl_grpo_ext.rewards.label_free import SelfConsistencyReward, label_free_reward


@pytest.fixture
def train(tiny_model, tiny_tokenizer, tmp_path):
    """Train three steps; return whether the model changed, and the trainer's state."""
    from datasets import Dataset

    def run(reward):
        trl = import_trl()
        config = trl.GRPOConfig(
            **config_kwargs(
                output_dir=str(tmp_path),
                max_steps=3,
                learning_rate=1e-2,
                per_device_train_batch_size=64,
                num_generations=8,
                max_completion_length=2,
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                logging_steps=1,
                report_to=[],
                disable_tqdm=True,
            )
        )
        before = tiny_model.lm_head.weight.detach().clone()
        trainer = trl.GRPOTrainer(
            model=prepare_model(tiny_model),
            reward_funcs=[reward],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": f"say {'#' * i}"} for i in range(16)]),
            processing_class=tiny_tokenizer,
            callbacks=[RewardMetricsCallback(reward)],
        )
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

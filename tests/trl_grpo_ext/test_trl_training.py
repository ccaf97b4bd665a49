"""The built-in rewards in a real `GRPOTrainer.train()`."""

import pytest
from adapter_runs import texts_of

from trl_grpo_ext import REWARDS, apply_reward_control, resolve_reward_funcs

ROWS = 64
COLUMNS = {"solution": "7", "chosen": "1 1", "rejected": "7 7"}


@pytest.fixture
def train(make_tiny_trainer):
    """Train two steps and return the trainer."""

    def run(rewards, conversational=False, **columns):
        prompt = [{"role": "user", "content": "say"}] if conversational else "say "
        rows = [{"prompt": prompt, **COLUMNS, **columns}] * ROWS
        trainer = make_tiny_trainer(rewards, rows, 2, per_device_train_batch_size=ROWS)
        trainer.train()
        return trainer

    return run


def logged(trainer, name):
    """Completions of the last step as text, and the rewards that the trainer used for them."""
    return texts_of(trainer), list(trainer._logs["rewards"][name])


@pytest.mark.parametrize("conversational", [False, True], ids=["text", "messages"])
@pytest.mark.parametrize("name", ["exact_match", "gsm8k_number", "preference_overlap"])
def test_built_in_reward_trains(train, name, conversational):
    trainer = train(resolve_reward_funcs([name]), conversational)
    texts, rewards = logged(trainer, name)
    columns = {column: [value] * len(texts) for column, value in COLUMNS.items()}
    assert len(texts) == ROWS
    assert len(set(rewards)) > 1
    assert rewards == pytest.approx(REWARDS[name](texts, **columns))
    assert [entry[f"rewards/{name}/mean"] for entry in trainer.state.log_history if "reward" in entry][1:] == [
        pytest.approx(sum(rewards) / ROWS, abs=1e-6)
    ]


def test_varying_rewards_move_the_model(train, tiny_model):
    before = tiny_model.lm_head.weight.detach().clone()
    _, rewards = logged(train([REWARDS["preference_overlap"]]), "preference_overlap")
    assert len(set(rewards)) > 1
    assert not tiny_model.lm_head.weight.equal(before)


def test_reward_from_a_file_under_control(train, tmp_path):
    (tmp_path / "r.py").write_text(
        "def length(completions, **kwargs):\n    return [len(c) + 0.5 for c in completions]\n"
    )
    trainer = train(apply_reward_control(resolve_reward_funcs("r.py:length", tmp_path), "shuffled"))
    texts, rewards = logged(trainer, "length")
    true = [len(text) + 0.5 for text in texts]
    assert len(set(true)) > 1
    assert sorted(rewards) == sorted(true)
    assert rewards != true


def test_missing_solution_stops_training(train):
    with pytest.raises(ValueError, match="Column 'solution' is None in row 0"):
        train([REWARDS["exact_match"]], solution=None)

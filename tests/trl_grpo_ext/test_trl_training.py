"""The built-in rewards in a real `GRPOTrainer.train()`."""

import pytest

from trl_grpo_ext import (
    REWARDS,
    apply_reward_control,
    check_reward_columns,
    config_kwargs,
    import_trl,
    prepare_model,
    resolve_reward_funcs,
)

ROWS = 64
COLUMNS = {"solution": "7", "chosen": "1 1", "rejected": "7 7"}


@pytest.fixture
def train(tiny_model, tiny_tokenizer, tmp_path):
    """Train two steps and return the trainer."""
    from datasets import Dataset

    def run(rewards, conversational=False, **columns):
        trl = import_trl()
        prompt = [{"role": "user", "content": "say"}] if conversational else "say "
        rows = Dataset.from_list([{"prompt": prompt, **COLUMNS, **columns}] * ROWS)
        for reward in rewards:
            check_reward_columns(reward, rows.column_names)
        config = trl.GRPOConfig(
            **config_kwargs(
                output_dir=str(tmp_path / "out"),
                max_steps=2,
                learning_rate=1e-2,
                per_device_train_batch_size=ROWS,
                num_generations=4,
                max_completion_length=2,
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                logging_steps=1,
                report_to=[],
                disable_tqdm=True,
            )
        )
        trainer = trl.GRPOTrainer(
            model=prepare_model(tiny_model),
            reward_funcs=rewards,
            args=config,
            train_dataset=rows,
            processing_class=tiny_tokenizer,
        )
        trainer.train()
        return trainer

    return run


def logged(trainer, name):
    """Completions of the last step as text, and the rewards that the trainer used for them."""
    rows = list(trainer._logs["completion"])
    texts = [row if isinstance(row, str) else row[-1]["content"] for row in rows]
    return texts, list(trainer._logs["rewards"][name])


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

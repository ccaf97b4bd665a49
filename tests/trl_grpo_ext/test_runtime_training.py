"""Rewards in worker processes under a real `trainer.train()` of the stock trainer, on both TRL lines."""

import math

import pytest

from trl_grpo_ext import check_reward_columns, config_kwargs, import_trl, prepare_model
from trl_grpo_ext._compat import reward_keywords
from trl_grpo_ext.rewards.runtime import IsolatedReward, RewardError, RewardRuntime

cloudpickle = pytest.importorskip("cloudpickle")
ROWS = 8


@pytest.fixture
def train(tiny_model, tiny_tokenizer, tmp_path):
    """Train three steps and return the trainer."""
    from datasets import Dataset

    def run(reward):
        trl = import_trl()
        rows = Dataset.from_list([{"prompt": "say ", "gold": "1", "number": index} for index in range(32)])
        check_reward_columns(reward, rows.column_names)
        settings = {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 3,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": ROWS,
            "num_generations": 4,
            "max_completion_length": 4,
            "use_cpu": True,
            "bf16": False,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": [],
            "disable_tqdm": True,
        }
        trainer = trl.GRPOTrainer(
            model=prepare_model(tiny_model),
            reward_funcs=[reward],
            args=trl.GRPOConfig(**config_kwargs(**settings)),
            train_dataset=rows,
            processing_class=tiny_tokenizer,
        )
        trainer.train()
        return trainer

    return run


def test_training_goes_on_past_rows_that_hang_or_fail(train):
    def sevens(completions, number, trainer_state, log_metric=None, **kwargs):
        """The share of sevens; hangs on one completion of the second step and crashes on one of the third."""
        if log_metric is not None:
            log_metric("sevens_step", float(trainer_state.global_step))
        (text,) = completions
        if trainer_state.global_step == 1 and "7" in text:
            7 ** (9**9**2)
        if trainer_state.global_step == 2 and "1" in text:
            raise ValueError("no ones")
        return [text.count("7") + 0.1 * len(text)]

    with RewardRuntime(workers=2, deadline=0.3) as runtime:
        reward = IsolatedReward(sevens, runtime=runtime, on_error=-1.0)
        trainer = train(reward)
        stats = reward.stats()
    assert trainer.state.global_step == 3
    assert stats["rows"] == 3 * ROWS
    assert stats["timeouts"] >= 1
    assert stats["errors"] >= 1
    texts, rewards = list(trainer._logs["completion"]), list(trainer._logs["rewards"]["sevens"])
    assert rewards == pytest.approx([-1.0 if "1" in t else t.count("7") + 0.1 * len(t) for t in texts])
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(history) == 3
    if "log_metric" in reward_keywords()[0]:
        logged = [{key: entry[key] for key in entry if "reward_runtime/sevens/" in key} for entry in history]
        assert (
            sum(sum(v for k, v in entry.items() if k.endswith("/timeouts")) for entry in logged) == stats["timeouts"]
        )
        assert any(math.isclose(entry.get("sevens_step", -1), 2.0) for entry in history)


def test_a_failing_reward_stops_the_run_when_asked(train):
    def fails(completions, **kwargs):
        raise RuntimeError("broken judge")

    with (
        RewardRuntime(workers=1) as runtime,
        pytest.raises(RewardError, match=r"'fails' failed on row 0 .*broken judge"),
    ):
        train(IsolatedReward(fails, runtime=runtime, on_error="raise"))

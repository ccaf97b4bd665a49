"""The figures of composed rewards in the trainer's log where TRL has no `log_metric` (before 1.0)."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_grpo_ext.rewards.composition.components import collect_metrics


class RewardMetricsCallback(TrainerCallback):
    """Adds the `last_metrics` of rewards, and of their parts, to each log entry that lacks them.

    Needed on TRL 0.24 only: where TRL passes `log_metric`, the rewards log themselves, as means over the logging
    interval, and this callback adds nothing. What it adds are the figures of the last call of this process. They reach
    `state.log_history` and the callbacks after this one; the integrations (`report_to`) come before it.

    Args:
        rewards: reward objects such as `CompositeReward`; the same objects that the trainer calls, in its process.
    """

    def __init__(self, *rewards: Any) -> None:
        self.rewards = rewards

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Complete the training log entry in place; evaluation entries stay as they are."""
        entries = [entry for entry in (logs, *state.log_history[-1:]) if entry is not None and "loss" in entry]
        for reward in self.rewards:
            for name, value in collect_metrics(reward).items():
                for entry in entries:
                    entry.setdefault(name, value)

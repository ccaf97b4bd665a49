"""The trainer's side of the collapse guard."""

from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from trl_grpo_ext.rewards.composition.callback import RewardMetricsCallback
from trl_grpo_ext.rewards.label_free.guard import CollapseGuard


class CollapseGuardCallback(RewardMetricsCallback):
    """Ends training when the guard's policy is "stop" and it has found a collapse; completes the log on older TRL.

    The second as in `RewardMetricsCallback`, with the figures of the guard and of the reward inside it.

    Args:
        guard: the guard that the trainer calls as its reward function; `CollapseGuard.callback()` makes this object.
    """

    def __init__(self, guard: CollapseGuard) -> None:
        super().__init__(guard)
        self.guard = guard

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the guard that somebody listens."""
        self.guard.watched = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop after the optimizer step in which the collapse was found."""
        super().on_step_end(args, state, control, **kwargs)
        if self.guard.policy == "stop" and self.guard.collapsed:
            control.should_training_stop = True

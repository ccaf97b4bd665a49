"""The figures of composed rewards in the trainer's log where TRL has no `log_metric` (before 1.0)."""

from collections import defaultdict
from statistics import fmean
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_grpo_ext.rewards.composition.components import metric_sources


class RewardMetricsCallback(TrainerCallback):
    """Adds the `last_metrics` of rewards, and of their parts, to each training log entry that lacks them.

    Needed on TRL 0.24 only: where TRL passes `log_metric`, the rewards log themselves, and this callback adds nothing.
    What it adds are means over the logging interval, of the last reward call of each optimizer step, in this process.
    The figures of evaluation calls are left out. They reach `state.log_history` and the callbacks after this one; the
    integrations (`report_to`) come before it.

    Args:
        rewards: reward objects that keep `last_metrics` (adapters, `CompositeReward`, the label-free ones); the same
            objects that the trainer calls, in its process.
    """

    def __init__(self, *rewards: Any) -> None:
        self.rewards = rewards
        self._taken: dict[int, dict[str, float]] = {}
        self._values: dict[str, list[float]] = defaultdict(list)

    def _new_figures(self) -> dict[str, float]:
        """Return the figures of the calls since the last time. Every call makes a new `last_metrics`."""
        figures: dict[str, float] = {}
        for reward in self.rewards:
            for source in metric_sources(reward):
                if self._taken.get(id(source)) is not source.last_metrics:
                    self._taken[id(source)] = source.last_metrics
                    figures |= source.last_metrics
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Return what was not logged yet; a `CheckpointCallback` keeps it."""
        return {"values": {name: list(values) for name, values in self._values.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it."""
        self._values = defaultdict(list, {name: list(values) for name, values in state["values"].items()})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the figures of the step."""
        for name, value in self._new_figures().items():
            self._values[name].append(value)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the figures of the evaluation."""
        self._new_figures()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Complete the training log entry in place; evaluation entries stay as they are."""
        entries = [entry for entry in (logs, *state.log_history[-1:]) if entry is not None and "loss" in entry]
        for entry in entries:
            for name, values in self._values.items():
                entry.setdefault(name, fmean(values))
        if entries:
            self._values.clear()

"""`LiveCallback`: what a GRPO run does, in the terminal while it trains; plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from trl_grpo_ext._attach import calling_trainer
from trl_grpo_ext.report.lines import FIRST_STEP, Completion, figures, group_lines, status_line
from trl_grpo_ext.report.terminal import TerminalView

_EVENTS = (
    "on_train_begin",
    "on_step_end",
    "on_prediction_step",
    "on_log",
    "on_evaluate",
    "on_predict",
    "on_train_end",
)


class LiveCallback(TrainerCallback):
    """Shows reward, per-function rewards, dead groups, lengths, KL, tokens/s and time left: `callbacks=[LiveCallback()]`.

    For TRL's GRPOTrainer and everything derived from it. It takes the place of the progress bar and of the printed
    dictionaries of transformers. In a terminal, with rich installed, the figures stand still at the bottom below a
    progress bar; elsewhere each log entry is one line. Every `group_every` log entries one group is shown, its
    completions sorted by advantage. Only the main process writes.

    Args:
        group_every: log entries between two groups; 10 by default, 0 for none.
        stream: where to; the error output by default, where transformers' own bar goes.

    Raises:
        ValueError: `group_every` below 0.
        TypeError: at the start of training, a trainer that is not a GRPO trainer.
    """

    def __init__(self, group_every: int = 10, stream: TextIO | None = None) -> None:
        if group_every < 0:
            raise ValueError(f"group_every must be at least 0, not {group_every}.")
        self.group_every, self.stream = group_every, stream
        self.trainer: Any = None
        self._view: TerminalView | None = None
        self._entries, self._began, self._first_step = 0, 0.0, 0
        self._tokens: tuple[float, float] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the trainer, take the place of its progress bar, and begin."""
        self.trainer = calling_trainer()
        if not hasattr(self.trainer, "reward_funcs"):
            raise TypeError(f"LiveCallback needs a GRPOTrainer, not {type(self.trainer).__name__}.")
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback | PrinterCallback):
                silence(callback)
        self._entries, self._began, self._first_step, self._tokens = 0, time.monotonic(), state.global_step, None
        if state.is_world_process_zero:
            self._view = TerminalView.on(self.stream or sys.stderr, state.max_steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the last figures on the screen."""
        if self._view is not None:
            self._view.close()
            self._view = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._view is not None:
            self._view.move(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show a log entry: of training its figures, and now and then a group; of others what they say."""
        if not state.is_world_process_zero or not logs:
            return
        if "loss" not in logs:
            self._write_evaluation(state.global_step, logs)
            return
        shown = figures(logs, self._tokens_per_second(logs), self._seconds_left(state))
        if self._view is not None:
            self._view.show(state.global_step, shown)
        else:
            self._write([status_line(state.global_step, state.max_steps, shown)])
        if self._entries == 0:
            self._write([FIRST_STEP])
        if self.group_every and self._entries % self.group_every == 0:
            self._write_group(state.global_step)
        self._entries += 1

    def _write_evaluation(self, step: int, logs: Mapping[str, Any]) -> None:
        told = {name.removeprefix("eval_"): value for name, value in logs.items() if _is_told(name, value)}
        if told:
            self._write(
                [f"step {step}, evaluation | " + " | ".join(f"{name} {value:.3f}" for name, value in told.items())]
            )

    def _write(self, lines: Sequence[str]) -> None:
        if self._view is not None:
            self._view.write(lines)
        else:
            print(*lines, sep="\n", file=self.stream or sys.stderr, flush=True)

    def _write_group(self, step: int) -> None:
        prompt, group = last_group(self.trainer)
        if group:
            self._write(group_lines(step, prompt, group))

    def _tokens_per_second(self, logs: Mapping[str, Any]) -> float | None:
        """Tokens of prompts and completions of all ranks, per second since the entry before."""
        tokens, now, before = logs.get("num_tokens"), time.monotonic(), self._tokens
        if tokens is None:
            return None
        self._tokens = (float(tokens), now)
        return None if before is None or now <= before[1] else (float(tokens) - before[0]) / (now - before[1])

    def _seconds_left(self, state: Any) -> float | None:
        done = state.global_step - self._first_step
        return None if done < 1 else (time.monotonic() - self._began) / done * (state.max_steps - state.global_step)


def _is_told(name: str, value: Any) -> bool:
    """Of an evaluation: its reward, and independent metrics without the ends of their intervals."""
    if not name.startswith("eval_") or not isinstance(value, int | float) or name.endswith(("_low", "_high")):
        return False
    return name == "eval_reward" or "/avg" in name or "/pass@" in name or "/maj@" in name


def silence(callback: Any) -> None:
    """Let a progress callback of transformers do nothing from now on; a bar that it has begun is closed."""
    bar = getattr(callback, "training_bar", None)
    if bar is not None:
        bar.close()
    for name in _EVENTS:
        setattr(callback, name, _nothing)


def _nothing(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
    return None


def last_group(trainer: Any) -> tuple[str, list[Completion]]:
    """Return the prompt and the completions of the group with the widest rewards in the trainer's last generation."""
    logs, size = trainer._logs, trainer.num_generations
    advantages, texts = list(logs["advantages"]), list(logs["completion"])
    rewards = {name: list(values) for name, values in logs["rewards"].items()}
    starts = range(0, len(texts) - size + 1, size)
    if not starts or len(advantages) != len(texts):
        return "", []
    best = max(starts, key=lambda start: max(advantages[start : start + size]) - min(advantages[start : start + size]))
    group = [
        Completion(_text(texts[row]), {name: values[row] for name, values in rewards.items()}, advantages[row])
        for row in range(best, best + size)
    ]
    return _text(list(logs["prompt"])[best]), group


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(str(message.get("content") or "") for message in value)

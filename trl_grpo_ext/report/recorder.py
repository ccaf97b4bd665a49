"""`completions.jsonl` of a trainer that writes none: the completions of each generation, read from TRL's own logs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from trl_grpo_ext.report.run_files import COMPLETIONS
from trl_grpo_ext.row_log import RowLog

Row = dict[str, Any]


def writes_its_own(trainer: Any) -> bool:
    """Return whether a trainer writes its completions by itself, as that of LLaMA-Factory's stage grpo does."""
    return hasattr(trainer, "start_completion_log")


def _number(value: Any) -> float | None:
    number = None if value is None else float(value)
    return number if number is not None and math.isfinite(number) else None


def generation_rows(trainer: Any, step: int) -> list[Row]:
    """Return one row per completion of the trainer's last generation: `rewards`, their weighted sum, `advantage`.

    Nothing where TRL's logs do not fit together.
    """
    logs = trainer._logs
    prompts, texts, advantages = list(logs["prompt"]), list(logs["completion"]), list(logs["advantages"])
    rewards = {name: list(values) for name, values in logs["rewards"].items()}
    if any(len(values) != len(texts) for values in (prompts, advantages, *rewards.values())):
        return []
    weights = dict(zip(trainer.reward_func_names, map(float, trainer.reward_weights), strict=True))
    rows = []
    for place, text in enumerate(texts):
        own = {name: _number(values[place]) for name, values in rewards.items()}
        known = [weights[name] * value for name, value in own.items() if value is not None]
        row = {"step": step, "prompt": prompts[place], "completion": text, "rewards": own}
        rows.append(row | {"reward": sum(known) if known else None, "advantage": _number(advantages[place])})
    return rows


class Recorder:
    """Writes the completions of a GRPO trainer, each generation once, on the main process.

    Args:
        trainer: a GRPO trainer.
        folder: its output folder.
        step: optimizer step at which training begins; of a resumed run later rows are dropped from the file.
    """

    def __init__(self, trainer: Any, folder: Path, step: int) -> None:
        self.trainer, self.log = trainer, RowLog(folder / COMPLETIONS)
        self.log.keep_up_to(step)
        self._seen = trainer.state.num_input_tokens_seen

    def record(self, step: int) -> None:
        """Write what has been generated for training since the last call; evaluations are left out."""
        # One generation may serve several optimizer steps; TRL counts the tokens of each, of training alone.
        seen = self.trainer.state.num_input_tokens_seen
        if seen != self._seen:
            self._seen = seen
            self.log.write(generation_rows(self.trainer, step))

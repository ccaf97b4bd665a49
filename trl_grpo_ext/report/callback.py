"""`ReportCallback`: the report of a run, written by itself when the training ends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from trl_grpo_ext._attach import calling_trainer
from trl_grpo_ext.report.html import write_report
from trl_grpo_ext.report.run_files import STATE, write_settings

logger = logging.get_logger(__name__)


class ReportCallback(TrainerCallback):
    """Writes `report.html` when a GRPO trainer has trained: `callbacks=[ReportCallback()]`.

    For TRL's GRPOTrainer and everything derived from it. It keeps the resolved arguments of the run in
    `run_settings.json` at the start (tokens of hubs are masked), and at the end `trainer_state.json`, both in the output
    folder. A report that can't be written is a warning: the run is done, and `grpo-ext report` can be called later.

    Args:
        control: output folder of a control run, whose curves are drawn dotted.
        at_end: False to keep the arguments only, for a caller that writes the report later.
    """

    def __init__(self, control: str | os.PathLike[str] | None = None, at_end: bool = True) -> None:
        self.control, self.at_end = control, at_end

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the arguments of the run."""
        if state.is_world_process_zero:
            write_settings(args.output_dir, settings_of(calling_trainer(), args))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the report."""
        if self.at_end and state.is_world_process_zero:
            state.save_to_json(str(Path(args.output_dir) / STATE))
            try_report(args.output_dir, self.control)


def settings_of(trainer: Any, args: Any) -> dict[str, Mapping[str, Any]]:
    """Return the reward functions and the arguments of a run."""
    names = getattr(trainer, "reward_func_names", [])
    weights = getattr(trainer, "reward_weights", None)
    weights = [1.0] * len(names) if weights is None else [float(weight) for weight in weights]
    return {"reward weights": dict(zip(names, weights, strict=True)), "arguments": args.to_dict()}


def try_report(folder: str | os.PathLike[str], control: str | os.PathLike[str] | None = None) -> Path | None:
    """Write the report of a run whose training is done; where that fails, say why and return None."""
    try:
        return write_report(Path(folder), control=None if control is None else Path(control))
    except (ImportError, OSError, ValueError) as error:
        logger.warning(f"no report of {folder}: {error}")
        return None

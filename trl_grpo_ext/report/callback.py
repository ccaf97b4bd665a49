"""`ReportCallback`: the report of a run, written by itself when the training ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from trl_grpo_ext._attach import calling_trainer
from trl_grpo_ext._compat import library_versions
from trl_grpo_ext.report.html import write_report
from trl_grpo_ext.report.page_parts import Table
from trl_grpo_ext.report.pictures import write_pictures
from trl_grpo_ext.report.recorder import Recorder, writes_its_own
from trl_grpo_ext.report.run_files import STATE, VERSIONS, write_settings

logger = logging.get_logger(__name__)


class ReportCallback(TrainerCallback):
    """Writes `report.html` when a GRPO trainer has trained: `callbacks=[ReportCallback()]`.

    For TRL's GRPOTrainer and everything derived from it. It keeps the resolved arguments of the run and the versions of
    its libraries in `run_settings.json` at the start (tokens of hubs are masked), every completion with its rewards and
    advantage in `completions.jsonl` (the trainer of LLaMA-Factory's stage grpo does so itself), and at the end
    `trainer_state.json`, all in the output folder. A report that can't be written is a warning: the run is done, and
    `grpo-ext report` can be called later. Only the main process writes. Training is not changed.

    Args:
        control: output folder of a control run, whose curves are drawn dotted.
        at_end: False to keep what a report needs only, for a caller that writes it later.
        completions: False to keep no completions; the report has then no groups to browse.
        pictures: True to write the curves as PNG files too (`write_pictures`).
        tables: called at the end for further tables, title -> (header, rows), such as
            `lambda: experience_tables("experiences.db")`.
        settings: further settings to show, title -> name -> value.

    Raises:
        TypeError: at the start of training, completions are to be kept of a trainer that is not a GRPO trainer.
    """

    def __init__(
        self,
        control: str | os.PathLike[str] | None = None,
        at_end: bool = True,
        *,
        completions: bool = True,
        pictures: bool = False,
        tables: Callable[[], Mapping[str, Table]] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.control, self.at_end, self.completions = control, at_end, completions
        self.pictures, self.tables, self.settings = pictures, tables, settings or {}
        self._recorder: Recorder | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the arguments of the run, and begin the file of completions, or go on with it after a resume."""
        trainer = calling_trainer()
        self._recorder = None
        if self.completions and not hasattr(trainer, "reward_funcs"):
            raise TypeError(f"ReportCallback needs a GRPOTrainer, not {type(trainer).__name__}.")
        if not state.is_world_process_zero:
            return
        versions = {VERSIONS: library_versions()}
        write_settings(args.output_dir, {**self.settings, **settings_of(trainer, args), **versions})
        if self.completions and not writes_its_own(trainer):
            self._recorder = Recorder(trainer, Path(args.output_dir), state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the completions of a new generation."""
        if self._recorder is not None:
            self._recorder.record(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the report."""
        if self.at_end and state.is_world_process_zero:
            state.save_to_json(str(Path(args.output_dir) / STATE))
            try_report(args.output_dir, self.control, tables=self.tables, pictures=self.pictures)


def settings_of(trainer: Any, args: Any) -> dict[str, Mapping[str, Any]]:
    """Return the reward functions and the arguments of a run."""
    names = getattr(trainer, "reward_func_names", [])
    weights = getattr(trainer, "reward_weights", None)
    weights = [1.0] * len(names) if weights is None else [float(weight) for weight in weights]
    return {"reward weights": dict(zip(names, weights, strict=True)), "arguments": args.to_dict()}


def try_report(
    folder: str | os.PathLike[str],
    control: str | os.PathLike[str] | None = None,
    *,
    tables: Callable[[], Mapping[str, Table]] | None = None,
    pictures: bool = False,
) -> Path | None:
    """Write the report of a run whose training is done; where that fails, say why and return None."""
    other = None if control is None else Path(control)
    try:
        if pictures:
            write_pictures(Path(folder), other)
        return write_report(Path(folder), control=other, tables=tables() if tables is not None else None)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        logger.warning(f"no report of {folder}: {error}")
        return None

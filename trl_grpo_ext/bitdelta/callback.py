"""`BitDeltaCallback`: the saved checkpoints of any transformers Trainer as deltas of what the run started from."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from trl_grpo_ext._attach import calling_trainer
from trl_grpo_ext.bitdelta.compress import compress
from trl_grpo_ext.bitdelta.config import BitDeltaConfig
from trl_grpo_ext.bitdelta.errors import BitDeltaError
from trl_grpo_ext.bitdelta.report import DeltaReport
from trl_grpo_ext.bitdelta.sources import open_source
from trl_grpo_ext.bitdelta.training import ADAPTER, FOLDER, SOURCE, recorded_base, training_inputs

logger = logging.get_logger(__name__)

MOMENTS = ("train_end", "save", "both")


class BitDeltaCallback(TrainerCallback):
    """Compresses checkpoints on disk, on rank 0, when they are saved or when training ends.

    Works in every stage of TRL and LLaMA-Factory that trains all parameters. A LoRA run keeps its adapter, which is
    exact and smaller than any delta; the callback says so and does nothing. A failure is a warning, never the end of a
    run: the checkpoint itself is there.

    Args:
        config: how to compress.
        base: what the run started from; by default the model's own `name_or_path`.
        on: "train_end" writes `output_dir/bitdelta`, "save" `checkpoint-N/bitdelta`, "both" both.
        prompts: texts that scales are fitted to, with a forward pass of the live model; by default rows of the
            training data, by its column `prompt` (GRPO) or `input_ids` (supervised stages). Sharded models (ZeRO-3,
            FSDP) keep mean scales.

    Attributes:
        report: what the last compression chose; None before it.
        failure: message of the last one that failed; None without.

    Raises:
        ValueError: a value outside its range.
        BitDeltaError: at the start of training, a base that can't be read.
    """

    def __init__(
        self,
        config: BitDeltaConfig | None = None,
        base: str | os.PathLike[str] | None = None,
        on: str = "train_end",
        prompts: Sequence[str] | None = None,
    ) -> None:
        if on not in MOMENTS:
            raise ValueError(f"BitDeltaCallback: on must be one of {', '.join(MOMENTS)}, not {on!r}.")
        self.config, self.base, self.on, self.prompts = config or BitDeltaConfig(), base, on, prompts
        self.report: DeltaReport | None = None
        self.failure: str | None = None
        self._trainer: Any = None
        self._start: str | os.PathLike[str] = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Find the trainer, and refuse a base that can't be read before an hour of training."""
        self._trainer = None
        if hasattr(model, "peft_config"):
            warnings.warn(f"BitDeltaCallback: {ADAPTER}", stacklevel=2)
            return
        self._trainer = calling_trainer()
        if self._trainer is None:
            raise RuntimeError("BitDeltaCallback found no trainer among its callers.")
        self._start = self.base if self.base is not None else recorded_base(model)
        open_source(self._start)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compress the checkpoint that was just saved."""
        if self._trainer is not None and self.on in ("save", "both"):
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self._compress(checkpoint, checkpoint / FOLDER, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compress what training ends with: the last checkpoint, the best one, or the model saved for it."""
        if self._trainer is None or self.on == "save":
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.load_best_model_at_end and state.best_model_checkpoint:
            checkpoint = Path(state.best_model_checkpoint)
        if checkpoint.is_dir():
            self._compress(checkpoint, Path(args.output_dir) / FOLDER, state)
            return
        # All ranks take part in saving.
        saved = Path(args.output_dir) / SOURCE
        self._trainer.save_model(str(saved))
        self._compress(saved, Path(args.output_dir) / FOLDER, state)
        if state.is_world_process_zero:
            shutil.rmtree(saved, ignore_errors=True)

    def _compress(self, checkpoint: Path, target: Path, state: Any) -> None:
        if not state.is_world_process_zero:
            return
        try:
            inputs = training_inputs(self._trainer, self.config, self.prompts)
            self.report = compress(self._start, checkpoint, target, self.config, inputs=inputs, overwrite=True)
        except (BitDeltaError, OSError, ValueError) as error:
            self.failure = str(error)
            warnings.warn(f"BitDeltaCallback: no delta of {checkpoint}: {error}", stacklevel=2)
            return
        self.failure = None
        logger.info(f"{target}: {self.report.text()}")

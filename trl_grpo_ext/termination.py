"""`TerminationCallback`: SIGTERM ends a run with a checkpoint, at the end of the optimizer step."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from trl_grpo_ext._attach import calling_trainer

# 128 + SIGTERM, as a shell reports a process that the signal has ended.
EXIT_STATUS = 143

logger = logging.get_logger(__name__)


class TerminationCallback(TrainerCallback):
    """Saves and stops when the process gets SIGTERM, as schedulers send it before they kill: `callbacks=[...]`.

    All ranks finish the optimizer step, write its checkpoint together, also with `save_strategy="no"`, run the other
    callbacks' `on_train_end`, and leave `train()` by `SystemExit` with status 143; nothing after `train()` runs, so
    that an unfinished model is not saved as the final one. Resume from the checkpoint. The grace period must be longer
    than one optimizer step and a checkpoint: torchrun grants 30 seconds. Further SIGTERMs change nothing.

    Transformers' own `enable_jit_checkpoint` saves between two steps or inside one, each rank for itself.

    Outside Python's main thread no signal can be caught, and the callback does nothing. After training the former
    handler is back.
    """

    def __init__(self) -> None:
        self._asked = False
        self._stopping = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen to the signal."""
        self._asked = self._stopping = False
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask) or signal.SIG_DFL

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop on every rank when one has got the signal."""
        self._stopping = _on_any_rank(calling_trainer(), self._asked)
        if self._stopping:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the signal back, and end the process if it has stopped the training.

        A signal that comes after the last step changes nothing: the run is about to save its model.

        Raises:
            SystemExit: with status 143, after SIGTERM.
        """
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
        if not self._stopping:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        callbacks = calling_trainer().callback_handler.callbacks
        for later in callbacks[callbacks.index(self) + 1 :]:
            later.on_train_end(args, state, control, **kwargs)
        if state.is_world_process_zero:
            logger.warning(
                f"SIGTERM: training stopped after step {state.global_step} of {state.max_steps}, saved in {checkpoint}. "
                "Start it again with resume_from_checkpoint to go on."
            )
        raise SystemExit(EXIT_STATUS)


def _on_any_rank(trainer: Any, asked: bool) -> bool:
    if trainer is None or trainer.accelerator.num_processes == 1:
        return asked
    mine = torch.tensor([float(asked)], device=trainer.accelerator.device)
    return bool(trainer.accelerator.gather(mine).sum() > 0)

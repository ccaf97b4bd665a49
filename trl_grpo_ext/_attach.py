"""How a callback or a reward finds the trainer that it was given to: TRL and transformers hand them everything but it."""

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any


def callers() -> Iterator[FrameType]:
    """Yield the frames of the callers outside of this file, the nearest first."""
    frame = inspect.currentframe()
    while frame is not None:
        # A frame that reads its own variables holds itself: one of these here would keep the trainer, and a rank's
        # process group, until some later garbage collection.
        if frame.f_code.co_filename != __file__:
            yield frame
        frame = frame.f_back


def calling_trainer() -> Any:
    """Return the trainer that is calling this callback, or None."""
    from transformers import Trainer

    owners = (frame.f_locals.get("self") for frame in callers())
    return next((owner for owner in owners if isinstance(owner, Trainer)), None)


def resumed_checkpoint(trainer: Any) -> Path | None:
    """Return the folder of the checkpoint that a trainer is resuming from, when called at the start of training."""
    if not trainer.state.global_step:
        return None
    frames = (frame.f_locals for frame in callers() if frame.f_locals.get("self") is trainer)
    given = next((item for names in frames if (item := names.get("resume_from_checkpoint"))), None)
    if isinstance(given, str | os.PathLike):
        return Path(given)
    return Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"

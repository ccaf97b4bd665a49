"""Checkpoint folders that have their name only once they are whole. Standard library only.

A checkpoint is written below `_saving` and renamed to `checkpoint-N` when every file is on the disk. What looks for
the last checkpoint (`transformers.trainer_utils.get_last_checkpoint`, by the name alone, and so LLaMA-Factory) never
sees one that a kill or a full disk has cut off.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

# What transformers uploads to a hub leaves out names that begin so.
STAGING = "_saving"


def staging_folder(run: Path) -> Path:
    """Return the folder in which the checkpoints of a run are written."""
    return run / STAGING


def remove_unfinished(run: Path) -> None:
    """Remove what a killed process has left of a checkpoint."""
    shutil.rmtree(staging_folder(run), ignore_errors=True)


def publish(run: Path, name: str) -> None:
    """Give a whole checkpoint its name, in the place of an older one of the same step.

    Where several machines share the folder, the first one does it and the others find it done.

    Args:
        run: output folder of the run.
        name: of the checkpoint, such as "checkpoint-20".
    """
    written, target = staging_folder(run) / name, run / name
    with contextlib.suppress(FileNotFoundError):
        _to_disk(written)
        if target.exists():
            # A folder that is not empty can't be renamed over. A kill here leaves the run with its earlier checkpoints.
            os.replace(target, staging_folder(run) / f"older-{name}")
        os.replace(written, target)
        _flush(run)
    remove_unfinished(run)


def _to_disk(folder: Path) -> None:
    """After a loss of power too, the name must stand for whole files."""
    for path in folder.rglob("*"):
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    # Windows can't open a folder.
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

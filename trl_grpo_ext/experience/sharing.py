"""One library for all ranks of a run: the main process writes, every rank reads the same version; checkpoints."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list, gather_object

from trl_grpo_ext.experience.errors import ExperienceError
from trl_grpo_ext.experience.library import ExperienceLibrary
from trl_grpo_ext.experience.observation import ObservedGroup, Rollout, usage_gains

SNAPSHOT = "experiences.db"

Made = TypeVar("Made")


def from_main(accelerator: Any, make: Callable[[], Made]) -> Made:
    """Return on every rank what `make` returns on the main process; what it raises there ends every rank.

    Raises:
        ExperienceError: on the other ranks, when `make` raised on the main process.
    """
    if accelerator.num_processes == 1:
        return make()
    box: list[Any] = [None, None]
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            box[0] = make()
        except Exception as error:
            failure, box[1] = error, f"{type(error).__name__}: {error}"
    broadcast_object_list(box)
    if failure is not None:
        raise failure
    if box[1] is not None:
        raise ExperienceError(f"the experience library of the main process failed: {box[1]}")
    return box[0]


def from_all(rollouts: list[Rollout]) -> list[Rollout]:
    """Return the rollouts of all ranks, in the order of TRL's gathered rewards."""
    return gather_object(rollouts)


class SharedLibrary:
    """A library that the main process writes to, and that every rank reads at the same version.

    With several ranks all of them, the main process too, read a copy in memory: what another process writes into the
    file meanwhile can't make two ranks see different versions.

    Args:
        library: a library or the path of one. On ranks other than the main one it is not opened, or not used.

    Raises:
        TypeError: something else.
        ExperienceError: the file can't be used.
    """

    def __init__(self, library: ExperienceLibrary | str | os.PathLike[str]) -> None:
        if not isinstance(library, ExperienceLibrary | str | os.PathLike):
            raise TypeError(f"library must be an ExperienceLibrary or the path of its file, not {library!r}.")
        self._given = library
        # torchrun's variable: which rank this is, is known here before there is a process group.
        if os.environ.get("RANK", "0") == "0":
            self._open()
        self._copy: ExperienceLibrary | None = None

    def _open(self) -> ExperienceLibrary:
        if not isinstance(self._given, ExperienceLibrary):
            self._given = ExperienceLibrary(self._given)
        return self._given

    @property
    def is_connected(self) -> bool:
        """Whether `reader` may be used."""
        return self._copy is not None

    @property
    def reader(self) -> ExperienceLibrary:
        """The library at the version of all ranks."""
        if self._copy is None:
            raise RuntimeError("the experience library is not connected to a run yet; call connect() first.")
        return self._copy

    @property
    def writer(self) -> ExperienceLibrary:
        """The library itself; of the main process only."""
        return self._open()

    def connect(self, accelerator: Any, checkpoint: Path | None = None) -> None:
        """Give every rank the same version; every rank must call it.

        Args:
            accelerator: of the run.
            checkpoint: folder of the checkpoint that the run goes on from.

        Raises:
            ExperienceError: the file can't be used, or is another library than the checkpoint's.
        """
        if accelerator.num_processes == 1:
            self._prepare(checkpoint)
            self._copy = self.writer
            return
        self._copy = ExperienceLibrary.from_bytes(from_main(accelerator, lambda: self._prepare(checkpoint).to_bytes()))

    def _prepare(self, checkpoint: Path | None) -> ExperienceLibrary:
        if checkpoint is not None:
            restore(self.writer, checkpoint / SNAPSHOT)
        return self.writer

    def store(self, accelerator: Any, groups: Sequence[ObservedGroup], step: int) -> None:
        """Store the groups of an optimizer step in one transaction and bring every rank to the new version.

        Every rank must call it; the groups of the main process count.

        Raises:
            ExperienceError: the disk is full, the file locked; nothing of the step is stored then.
        """
        if accelerator.num_processes == 1:
            store_groups(self.writer, groups, step)
            return
        known = self.reader.version

        def changes() -> Any:
            store_groups(self.writer, groups, step)
            is_known = known >= self.writer.horizon
            return self.writer.changes_since(known) if is_known else self.writer.to_bytes()

        made = from_main(accelerator, changes)
        if isinstance(made, bytes):
            self._copy = ExperienceLibrary.from_bytes(made)
        else:
            self.reader.apply_changes(made)

    def save(self, accelerator: Any, checkpoint: Path) -> None:
        """Write a snapshot beside a checkpoint, on the main process."""
        if accelerator.is_main_process:
            checkpoint.mkdir(parents=True, exist_ok=True)
            self.writer.save_snapshot(checkpoint / SNAPSHOT)


def store_groups(library: ExperienceLibrary, groups: Sequence[ObservedGroup], step: int) -> None:
    """Store groups and what they say about the records that they had been given; what was stored before is left out."""
    new = [item for item in groups if not library.holds_group(item.group)]
    if not new:
        return
    with library.transaction("rollouts", step):
        library.add_rollout_groups([item.group for item in new], step=step)
        library.record_usage(usage_gains(new), step=step)


def restore(library: ExperienceLibrary, snapshot: Path) -> None:
    """Bring a library to what it was when a checkpoint was written.

    What it has learned since is rolled back: it stays in the history, and `library.rollback` brings it back; where the
    history does not reach back so far (`max_history`) it is put into a file beside the library's. An empty library
    takes the snapshot over. Without a snapshot, which is the case of checkpoints that were written without this
    callback, the library stays as it is, with a warning.

    Raises:
        ExperienceError: the library is neither empty nor a continuation of the snapshot.
    """
    if not snapshot.is_file():
        warnings.warn(f"{snapshot} does not exist: the experience library goes on as it is.", stacklevel=2)
        return
    then = ExperienceLibrary.from_bytes(snapshot.read_bytes())
    if continues(library, then):
        _go_back(library, then.version, snapshot)
    elif not len(library) and not library.counters().rollouts:
        library.load_snapshot(snapshot)
    else:
        raise ExperienceError(
            f"{library.name} is not the library that the run of {snapshot.parent} wrote to, and not empty. Give that "
            f"run's file or a new one, or delete {snapshot} to go on with this one."
        )


def _go_back(library: ExperienceLibrary, version: int, snapshot: Path) -> None:
    if version == library.version:
        return
    if version >= library.horizon:
        library.rollback(version)
        return
    file = Path(library.name)
    aside = file.with_name(f"{file.stem}-version-{library.version}{file.suffix}")
    if file.exists():
        library.save_snapshot(aside)
        warnings.warn(f"what {file} has learned since {snapshot.parent} is in {aside} now.", stacklevel=2)
    library.load_snapshot(snapshot)


def continues(library: ExperienceLibrary, earlier: ExperienceLibrary) -> bool:
    """Return whether a library has the last version of another one in its history."""
    return library.stamp(earlier.version) == earlier.stamp(earlier.version)

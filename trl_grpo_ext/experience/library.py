"""`ExperienceLibrary`: the mission guide's API over one SQLite file, or memory."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from trl_grpo_ext.experience import writing
from trl_grpo_ext.experience.config import ExperienceConfig
from trl_grpo_ext.experience.groups import RolloutGroup
from trl_grpo_ext.experience.library_reading import LibraryReading
from trl_grpo_ext.experience.library_upkeep import LibraryUpkeep
from trl_grpo_ext.experience.records import Lesson, Record
from trl_grpo_ext.experience.rows import metadata_json


class ExperienceLibrary(LibraryReading, LibraryUpkeep):
    """Episodes that beat their group, and lessons.

    Several processes can write to one file; each sees what the others have committed. In a distributed run rank 0
    writes, and the other ranks hold copies (`to_bytes`, `from_bytes`, `changes_since`, `apply_changes`).

    Args:
        path: see `LibraryFile`, as are the other arguments.
        config: see `LibraryFile`.
        seed: of the draws; a random one by default.

    Raises:
        ValueError: see `LibraryFile`.
        ExperienceError: the file can't be used: missing, locked, truncated, foreign, configured otherwise.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        config: ExperienceConfig | None = None,
        *,
        seed: int | None = None,
        **file: Any,
    ) -> None:
        super().__init__(path, config, **file)
        self._random = Random(seed)
        self._small_groups = False
        self._forget_caches()

    def add_rollout_group(
        self,
        rollouts: Sequence[tuple[str, str]],
        rewards: Sequence[float | None],
        *,
        step: int | None = None,
        **group: Any,
    ) -> list[str]:
        """Store the rollouts of one prompt whose advantage is above the threshold.

        Args:
            rollouts: (prompt, response) pairs of one prompt, of any number.
            rewards: one per rollout; None where the reward failed.
            step: training step, for the history.
            group: `metadata`, `uid` and `timestamp` of `RolloutGroup`.

        Returns:
            The ids of the episodes, for `tag`; empty for a group that was stored before.

        Raises:
            ValueError: a NaN or infinite reward, several prompts, different lengths. Nothing is stored then.
        """
        return self.add_rollout_groups([RolloutGroup.from_pairs(rollouts, rewards, **group)], step=step)[0]

    def add_rollout_groups(
        self, groups: Sequence[RolloutGroup], *, step: int | None = None, now: float | None = None
    ) -> list[list[str]]:
        """Store the groups of one training step in one transaction; returns the ids of each group's episodes."""
        if any(len(group.responses) < 4 for group in groups) and not self._small_groups:
            self._small_groups = True
            warnings.warn("groups of fewer than 4 rollouts give noisy advantages.", stacklevel=3)
        with self._write("rollouts", step) as change:
            return writing.put_groups(self._store, change, self.config, groups, time.time() if now is None else now)

    def add(
        self, *records: Record, cause: str = "add", step: int | None = None, now: float | None = None
    ) -> list[str]:
        """Add lessons, and episodes that have an advantage already, whatever the threshold; returns their ids."""
        with self._write(cause, step) as change:
            return writing.put_records(self._store, change, self.config, records, time.time() if now is None else now)

    def reword(
        self, name: str, text: str, *, cause: str = "reword", step: int | None = None, timestamp: float | None = None
    ) -> None:
        """Give a lesson another text; its id and usefulness stay. `timestamp`: of the new text; now by default.

        Raises:
            KeyError: no such record.
            ExperienceError: an episode, or another lesson has this text.
        """
        lesson = Lesson(text) if timestamp is None else Lesson(text, timestamp)
        with self._write(cause, step) as change:
            writing.reword(self._store, change, name, lesson)

    def retire(self, *names: str, cause: str = "retire", step: int | None = None) -> None:
        """Take records out; a rollback brings them back.

        Raises:
            KeyError: no such record.
        """
        with self._write(cause, step) as change:
            numbers = [writing.live_number(self._store, name) for name in dict.fromkeys(names)]
            self._store.set_live(change, numbers, False)

    def tag(self, names: Iterable[str], /, **metadata: Any) -> None:
        """Set metadata of records; a value of None takes the key away.

        Raises:
            KeyError: no such record.
        """
        with self._write("tag") as change:
            for name in names:
                number = writing.live_number(self._store, name)
                merged = {**self._store.read([number])[0].record.metadata, **metadata}
                kept = {key: value for key, value in merged.items() if value is not None}
                self._store.update(change, number, {"metadata": metadata_json(kept)})

    def record_usage(self, gains: Iterable[tuple[str, float]], *, step: int | None = None) -> None:
        """Note outcomes of use: (id, reward with the record - baseline of the group), one for each use.

        Raises:
            ValueError: a gain that is not finite.
        """
        with self._write("usage", step) as change:
            writing.put_usage(self._store, change, gains)

"""History, limits and files of a library. Use `ExperienceLibrary`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

from trl_grpo_ext.experience import history, interchange, merging, pruning, writing
from trl_grpo_ext.experience.filters import condition
from trl_grpo_ext.experience.history import Difference, VersionInfo
from trl_grpo_ext.experience.library_file import LibraryFile
from trl_grpo_ext.experience.reading import scan
from trl_grpo_ext.experience.records import Episode, Lesson
from trl_grpo_ext.experience.rows import Change, Counters, Stored

EXPORTS = ("library", "episodes", "lessons")


class LibraryUpkeep(LibraryFile):
    """What keeps a library in order."""

    def history(self, limit: int | None = None) -> list[VersionInfo]:
        """Return the transactions, the newest first, as far as the history reaches; see `max_history`."""
        return history.history(self._store, limit)

    def diff(self, earlier: int, later: int | None = None) -> Difference:
        """Return the net difference between two versions, the second being the current one by default.

        Raises:
            ValueError: there is no such version, or the history does not reach back to it.
        """
        return history.difference(self._store, earlier, self.version if later is None else later)

    def rollback(self, version: int) -> None:
        """Make the library what it was at a version, as a new version. History is never rewritten.

        Raises:
            ValueError: there is no such version, or the history does not reach back to it; see `max_history`.
        """
        with self._write(f"rollback to {version}") as change:
            history.rollback(self._store, change, version)

    def prune(self, *, max_age: float | None = None, max_size: int | None = None, now: float | None = None) -> int:
        """Apply age and size limits now, the configuration's by default; returns how many episodes were retired.

        Raises:
            ValueError: a negative limit.
        """
        age = self.config.max_experience_age if max_age is None else max_age
        size = self.config.max_library_size if max_size is None else max_size
        if not age >= 0 or not size >= 0:
            raise ValueError(f"max_age and max_size must not be negative: {max_age!r}, {max_size!r}.")
        with self._write("prune") as change:
            retired = pruning.prune_stale(self._store, change, age, time.time() if now is None else now)
            # An explicit size is meant exactly; the configured one leaves the room that it always leaves.
            share = self.config.prune_to if max_size is None else 1.0
            return retired + pruning.prune_size(self._store, change, size, share)

    def clear(self) -> None:
        """Retire every record and start all counts from 0; a rollback brings everything back."""
        with self._write("clear") as change:
            self._clear(change)

    def _clear(self, change: Change) -> None:
        live = self._store.rows("SELECT record FROM records WHERE live ORDER BY record")
        self._store.set_live(change, [number for (number,) in live], False)
        self._store.rows("DELETE FROM groups")
        change.counters = Counters()
        change.touched = True

    def _held(self, kind: str | None) -> Iterator[Stored]:
        return scan(self._store, kind, *condition(None))

    def export_file(self, path: str | os.PathLike[str], format: str = "library") -> int:
        """Write JSON in one step; returns the number of records written.

        Args:
            path: the file.
            format: "library": everything but the history, for `load_from_file`; "episodes": a list of prompt,
                response, advantage, timestamp, metadata; "lessons": {"G0": "...", ...}.

        Raises:
            ValueError: an unknown format.
            OSError: the file can't be written; one that stood there is as it was.
        """
        if format not in EXPORTS:
            raise ValueError(f"format must be one of {', '.join(EXPORTS)}, not {format!r}.")
        written = 0

        def counted(kind: str | None) -> Iterator[Stored]:
            nonlocal written
            for item in self._held(kind):
                written += 1
                yield item

        if format == "lessons":
            lessons = (item.record for item in counted("lesson") if isinstance(item.record, Lesson))
            parts = iter([json.dumps(interchange.numbered_lessons(lessons), ensure_ascii=False, indent=1) + "\n"])
        elif format == "episodes":
            parts = interchange.json_list(interchange.record_json(item.record) for item in counted("episode"))
        else:
            rows = interchange.json_list(interchange.stored_json(item) for item in counted(None))
            counters = self._store.counters()
            counts = {"rollouts": counters.rollouts, "stored": counters.stored, "pruned": counters.pruned}
            parts = interchange.library_json(json.loads(self.config.to_json()), counts, rows)
        interchange.write_json(path, parts)
        return written

    def save_to_file(self, path: str | os.PathLike[str]) -> None:
        """Write the library as JSON: `export_file(path, "library")`."""
        self.export_file(path)

    def load_from_file(self, path: str | os.PathLike[str]) -> None:
        """Replace the contents by those of a JSON file in any of the three formats; a rollback brings the old back.

        This library's configuration stays, and its limits apply.

        Raises:
            OSError: the file can't be read.
            ValueError: it holds something else; nothing is changed then.
        """
        contents = interchange.read_file(path)
        with self._write("load") as change:
            self._clear(change)
            self._put(change, contents)
            for name, count in contents.counters.items():
                setattr(change.counters, name, count)

    def import_file(self, path: str | os.PathLike[str]) -> list[str]:
        """Add the records of a JSON file in any of the three formats; returns their ids.

        Raises:
            OSError: the file can't be read.
            ValueError: it holds something else; nothing is added then.
        """
        contents = interchange.read_file(path)
        with self._write("import") as change:
            return self._put(change, contents)

    def _put(self, change: Change, contents: interchange.Contents) -> list[str]:
        names = writing.put_records(self._store, change, self.config, contents.records, time.time())
        merging.take_over_uses(self._store, change, contents.uses)
        return names

    def merge(self, path: str | os.PathLike[str]) -> int:
        """Add another library file: records, usefulness and counts. Merging it again adds nothing.

        Returns:
            The number of records that this library did not hold before.

        Raises:
            ExperienceError: there is no library.
        """
        with LibraryFile(path, create=False) as other, self._write(f"merge {os.fspath(path)}") as change:
            return merging.merge(self._store, change, self.config, other._store, time.time())

    def text_of(self, name: str) -> str:
        """Return the one-line text of any record that the library ever held, for listings.

        Raises:
            KeyError: it never held this id.
        """
        rows = self._store.rows("SELECT record FROM records WHERE id = ?", (name,))
        if not rows:
            raise KeyError(f"{self.name} never held a record {name!r}.")
        record = self._store.read([rows[0][0]])[0].record
        text = f"{record.prompt} -> {record.response}" if isinstance(record, Episode) else record.text
        return " ".join(text.split())

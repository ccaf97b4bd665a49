"""The lessons of each domain, read again when their library changes, and where they stand in a chat request."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_grpo_ext.experience import ExperienceError, ExperienceLibrary, Lesson, inject, lessons_text

logger = logging.getLogger("trl_grpo_ext.serving")

# Two commits within one tick of the file system's clock leave the same time stamp.
_TICK_SECONDS = 0.05


@dataclass(frozen=True)
class Shown:
    """What is added to a request.

    Args:
        text: the block of lessons; empty without lessons.
        count: of the lessons.
        version: of the library.
    """

    text: str
    count: int
    version: int


class Libraries:
    """The libraries that are served. Safe to use from several threads.

    A library that changes on disk, by commits or by another file in its place, is read again at the next request. If
    it can't be read then, what was read before is served on, and `stale` says so.

    Args:
        default: file of the library for all requests that name no domain: all its lessons. Of a domain that has no file
            of its own, those of its lessons whose metadata has this `domain`.
        domains: files of single domains; all their lessons.

    Raises:
        ExperienceError: a file can't be used.
        FileNotFoundError: no such file.
        ValueError: no library at all.
    """

    def __init__(
        self,
        default: str | os.PathLike[str] | None = None,
        domains: Mapping[str, str | os.PathLike[str]] | None = None,
    ) -> None:
        if default is None and not domains:
            raise ValueError("default and domains are both missing; give at least one library.")
        self._default = None if default is None else _Source(Path(default))
        self._domains = {name: _Source(Path(path)) for name, path in (domains or {}).items()}

    def shown(self, domain: str = "") -> Shown:
        """Return the lessons of a domain.

        Raises:
            KeyError: there is no such domain.
        """
        source = self._domains.get(domain) if domain else self._default
        if source is not None:
            return source.read().shown(None)
        if self._default is None or domain not in (shelf := self._default.read()).domains():
            raise KeyError(domain)
        return shelf.shown(domain)

    def names(self) -> list[str]:
        """Return the domains, in order; those of the default library among them."""
        found = set(self._domains) | (self._default.read().domains() if self._default else set())
        return sorted(found)

    def stale(self) -> list[str]:
        """Return the domains ("" for the default) whose library has changed and can't be read."""
        sources = {**({"": self._default} if self._default else {}), **self._domains}
        return sorted(name for name, source in sources.items() if source.read() and source.failed)


@dataclass(frozen=True)
class _Shelf:
    lessons: tuple[Lesson, ...]
    version: int

    def domains(self) -> set[str]:
        return {str(lesson.metadata["domain"]) for lesson in self.lessons if lesson.metadata.get("domain")}

    def shown(self, domain: str | None) -> Shown:
        chosen = [item for item in self.lessons if domain is None or item.metadata.get("domain") == domain]
        return Shown(lessons_text(chosen), len(chosen), self.version)


class _Source:
    def __init__(self, path: Path) -> None:
        self.path, self.failed = path, False
        self._lock = threading.Lock()
        self._stamp: tuple[tuple[int, int, int], ...] = ()
        self._shelf = _load(path)

    def read(self) -> _Shelf:
        with self._lock:
            try:
                self._refresh()
            except (ExperienceError, OSError) as error:
                if not self.failed:
                    logger.warning("the library %s can't be read; serving what was read before: %s", self.path, error)
                self.failed = True
            return self._shelf

    def _refresh(self) -> None:
        stamp = _stamp(self.path)
        if stamp == self._stamp and not self.failed:
            return
        self._shelf, self.failed = _load(self.path), False
        recent = max(time_ for _, time_, _ in stamp if time_) / 1e9 > time.time() - _TICK_SECONDS
        self._stamp = () if recent else stamp


def _stamp(path: Path) -> tuple[tuple[int, int, int], ...]:
    """Of the file, which must be there, and of its journal, which need not."""
    found = [os.stat(path)]
    journal = Path(f"{path}-wal")
    if journal.exists():
        found.append(os.stat(journal))
    return tuple((item.st_ino, item.st_mtime_ns, item.st_size) for item in found)


def _load(path: Path) -> _Shelf:
    with ExperienceLibrary(path, create=False) as library:
        lessons = [item.record for item in library.records("lesson")]
        return _Shelf(tuple(item for item in lessons if isinstance(item, Lesson)), library.version)


def with_lessons(messages: Sequence[dict[str, Any]], text: str, template: str | None = None) -> list[dict[str, Any]]:
    """Return the messages with the lessons in the system message, where training puts them.

    The other messages are passed on as they are, whatever they hold: images, tool calls.

    Args:
        messages: of a chat request, at least one.
        text: the block of lessons; empty: nothing is added.
        template: what surrounds it.

    Raises:
        TypeError: a system message that is no text.
    """
    if not text:
        return list(messages)
    system = list(messages[:1]) if messages[0]["role"] == "system" else []
    placed = inject(system or [{"role": "user", "content": ""}], text, "system", template)
    assert not isinstance(placed, str)
    return [placed[0], *messages[len(system) :]]

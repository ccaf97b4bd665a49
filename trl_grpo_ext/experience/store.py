"""Records in one SQLite file, or in memory by the same code: transactions, versions and the operations log.

Every transaction is one version. A retired record stays for rollback, and the log says what each version added,
retired, restored and changed, as far back as the configuration wants (`forgetting`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trl_grpo_ext.experience.database import Database
from trl_grpo_ext.experience.errors import translated
from trl_grpo_ext.experience.records import Lesson, Record, content_id
from trl_grpo_ext.experience.rows import (
    CHANGEABLE,
    RECORD_COLUMNS,
    RECORD_TABLES,
    Change,
    Stored,
    as_record,
    label_value,
    metadata_json,
)
from trl_grpo_ext.experience.text_index import FullTextIndex, InvertedIndex, TextIndex, has_full_text

_ADD_RECORD = (
    "INSERT INTO records (id, kind, prompt, text, advantage, reward, created, metadata, live) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1)"
)


class ExperienceStore(Database):
    """The tables of one library.

    Args:
        path: the file; None for a library in memory.
        durability: "normal" or "full"; see `schema.connect`.
        timeout: seconds to wait for another writer.
        create: whether a missing file is made.

    Raises:
        ExperienceError: see `schema.connect`.
    """

    def __init__(self, path: Path | None, durability: str, timeout: float, create: bool) -> None:
        super().__init__(path, durability, timeout, create)
        # Prompts that the transaction at hand has met.
        self._numbers: dict[str, int] = {}
        self._indexed: set[int] = set()
        with translated(self.name):
            self.full_text = has_full_text(self.connection)
        self._reset()

    def _reset(self) -> None:
        self._memory: tuple[int, InvertedIndex] | None = None
        if self.full_text:
            self._prepare_full_text()

    def _end(self) -> None:
        self._numbers, self._indexed = {}, set()

    # Prompts and their index.

    @property
    def index(self) -> TextIndex:
        """The index of the prompts of episodes; without FTS5 it is in memory and follows the log."""
        if self.full_text:
            return FullTextIndex(self.connection)
        version = self.version
        if self._memory is None:
            self._memory = (version, InvertedIndex(self.rows("SELECT prompt, text FROM prompts WHERE indexed")))
        elif self._memory[0] != version:
            if self._memory[0] < self.horizon:
                self._memory = None
                return self.index
            added = "SELECT record FROM operations WHERE version > ? AND kind = 'add'"
            statement = (
                f"SELECT prompt, prompts.text FROM records JOIN prompts USING (prompt) WHERE record IN ({added})"
            )
            for prompt, text in self.rows(statement, (self._memory[0],)):
                self._memory[1].add(prompt, text)
            self._memory = (version, self._memory[1])
        return self._memory[1]

    def _prepare_full_text(self) -> None:
        """Make the FTS5 table, and fill it when an interpreter without FTS5 has written to this file."""
        if self.meta("full_text") == "current":
            return
        with self.write("index"):
            # Another process may have done so meanwhile.
            if self.meta("full_text") == "current":
                return
            self.connection.execute("DROP TABLE IF EXISTS prompt_terms")
            FullTextIndex.create(self.connection)
            for prompt, text in self.rows("SELECT prompt, text FROM prompts WHERE indexed"):
                FullTextIndex(self.connection).add(prompt, text)
            self.set_meta("full_text", "current")

    def prompt_number(self, text: str) -> int | None:
        """Return the number of a prompt that was seen."""
        return self.value("SELECT prompt FROM prompts WHERE key = ?", (content_id("prompt", text),))

    def add_prompt(self, text: str) -> int:
        """Return the number of a prompt, a new one if need be."""
        if text not in self._numbers:
            key = content_id("prompt", text)
            found = self.value("SELECT prompt FROM prompts WHERE key = ?", (key,))
            if found is None:
                found = self.connection.execute("INSERT INTO prompts (key, text) VALUES (?, ?)", (key, text)).lastrowid
            self._numbers[text] = int(found or 0)
        return self._numbers[text]

    def index_prompt(self, prompt: int, text: str) -> None:
        """Put a prompt into the text index, once."""
        if prompt in self._indexed:
            return
        self._indexed.add(prompt)
        new = self.connection.execute("UPDATE prompts SET indexed = 1 WHERE prompt = ? AND NOT indexed", (prompt,))
        if new.rowcount and self.full_text:
            FullTextIndex(self.connection).add(prompt, text)
        elif new.rowcount and self.meta("full_text") == "current":
            self.set_meta("full_text", "behind")

    def unindex_prompt(self, prompt: int) -> None:
        """Take a prompt out of the text index, if it is there."""
        text = self.value("SELECT text FROM prompts WHERE prompt = ? AND indexed", (prompt,))
        if text is None:
            return
        self.connection.execute("UPDATE prompts SET indexed = 0 WHERE prompt = ?", (prompt,))
        self._indexed.discard(prompt)
        self._memory = None
        if self.full_text:
            FullTextIndex(self.connection).remove(prompt, text)
        elif self.meta("full_text") == "current":
            self.set_meta("full_text", "behind")

    # Records.

    def number(self, name: str) -> int | None:
        """Return the row number of a live record."""
        return self.value("SELECT record FROM records WHERE id = ? AND live", (name,))

    def read(self, numbers: Iterable[int]) -> list[Stored]:
        """Return records by number, in the order given."""
        statement = f"SELECT {RECORD_COLUMNS} FROM {RECORD_TABLES} WHERE record = ?"
        return [as_record(row) for number in numbers for row in self.rows(statement, (number,))]

    def insert(self, change: Change, record: Record) -> int:
        """Add a record that there is not, live or retired."""
        lesson = isinstance(record, Lesson)
        labels = metadata_json(record.metadata)
        if isinstance(record, Lesson):
            row: tuple[Any, ...] = (record.id, "lesson", None, record.text, None, None, record.timestamp, labels)
        else:
            prompt = self.add_prompt(record.prompt)
            self.index_prompt(prompt, record.prompt)
            text, time_stored = record.response, record.timestamp
            row = (record.id, "episode", prompt, text, record.advantage, record.reward, time_stored, labels)
        number = int(self.connection.execute(_ADD_RECORD, row).lastrowid or 0)
        self.label(number, record.metadata)
        change.log("add", number)
        change.count(lessons=1) if lesson else change.count(episodes=1)
        return number

    def label(self, number: int, metadata: Mapping[str, Any]) -> None:
        """Make metadata searchable."""
        rows = [(key, label_value(value), number) for key, value in metadata.items()]
        self.connection.executemany("INSERT INTO labels VALUES (?, ?, ?)", rows)

    def unlabel(self, number: int, metadata: Mapping[str, Any]) -> None:
        """Undo `label`, given the same metadata: the primary key starts with the key, not with the record."""
        rows = [(key, label_value(value), number) for key, value in metadata.items()]
        self.connection.executemany("DELETE FROM labels WHERE key = ? AND value = ? AND record = ?", rows)

    def set_live(self, change: Change, numbers: Iterable[int], live: bool) -> None:
        """Retire records, or restore them."""
        for number in numbers:
            self.connection.execute("UPDATE records SET live = ? WHERE record = ?", (int(live), number))
            change.log("restore" if live else "retire", number)
            kind = self.value("SELECT kind FROM records WHERE record = ?", (number,))
            sign = 1 if live else -1
            change.count(lessons=sign) if kind == "lesson" else change.count(episodes=sign)

    def update(self, change: Change, number: int, columns: Mapping[str, Any]) -> bool:
        """Change columns of CHANGEABLE; returns whether anything differed."""
        names = [name for name in CHANGEABLE if name in columns]
        row = self.rows(f"SELECT {', '.join(names)} FROM records WHERE record = ?", (number,))[0]
        before = {name: old for name, old in zip(names, row, strict=True) if old != columns[name]}
        if not before:
            return False
        after = {name: columns[name] for name in before}
        assignments = ", ".join(f"{name} = ?" for name in after)
        self.connection.execute(f"UPDATE records SET {assignments} WHERE record = ?", (*after.values(), number))
        if "metadata" in after:
            self.unlabel(number, json.loads(before["metadata"]))
            self.label(number, json.loads(after["metadata"]))
        change.log("change", number, before, after)
        return True

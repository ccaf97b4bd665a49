"""Rows in JSON Lines files: one object a line, whole lines only after a crash. Standard library only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# Valid inside a JSON string, but `str.splitlines` breaks a line at them.
_LINE_BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


class RowsError(ValueError):
    """A file of rows that can't be used; the message names the file, the line and the way out."""


def _whole_lines(path: Path) -> list[bytes]:
    data = path.read_bytes()
    # What follows the last line break was being written when the run died.
    return data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Return the rows of a JSON Lines file; a last line without its line break, left by a crash, is left out.

    Raises:
        OSError: the file can't be read.
        RowsError: a line that is no JSON object.
    """
    rows = []
    for number, line in enumerate(_whole_lines(Path(path)), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise RowsError(f"{path}: line {number} is no JSON ({error}); remove it.") from error
        if row is None:
            continue
        if not isinstance(row, dict):
            raise RowsError(f"{path}: line {number} is no JSON object but {str(row)[:60]}.")
        rows.append(row)
    return rows


class RowLog:
    """Appends rows to one file; each `write` is on the disk when it returns.

    A process that dies while it writes leaves at most one torn line, which is cut off when the file is opened again.

    Args:
        path: the file, made with its folder by the first `write`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def rows(self) -> list[Row]:
        """Return the whole rows that are there; none without a file."""
        return read_rows(self.path) if self.path.exists() else []

    def keep(self, rows: Iterable[Row]) -> None:
        """Make these rows the whole file, in one step: a crash leaves the old file or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        self._put(temporary, "wb", rows)
        os.replace(temporary, self.path)

    def keep_up_to(self, step: int) -> None:
        """Drop what a run that is resumed at `step` will write again; step 0 begins the file anew."""
        if self.path.exists():
            self.keep([row for row in self.rows() if step > 0 and (row.get("step") or 0) <= step])

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows after the last whole line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._cut_torn_line()
        self._put(self.path, "ab", rows)

    def _cut_torn_line(self) -> None:
        with open(self.path, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            if size and (file.seek(size - 1), file.read(1))[1] != b"\n":
                file.truncate(sum(len(line) + 1 for line in _whole_lines(self.path)))

    @staticmethod
    def _put(path: Path, mode: str, rows: Iterable[Row]) -> None:
        lines = [json.dumps(row, ensure_ascii=False, default=str).translate(_LINE_BREAKS) + "\n" for row in rows]
        with open(path, mode) as file:
            file.write("".join(lines).encode("utf-8", errors="surrogatepass"))
            file.flush()
            os.fsync(file.fileno())

"""Every Python snippet of the mission documents: where it stands, and what it runs on.

A snippet's text is in `snippets/<document>_<line>.txt`, word for word; `test_snippets` compares it with the document
where that is at hand. Only import lines are changed before it is executed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
MISSION = Path(os.environ.get("SHARED", REPOSITORY.parent / "shared")) / "mission"
SNIPPETS = Path(__file__).parent / "snippets"
# `hanzo` is another product's client: its import line stays, and the fixture plays it.
_IMPORT = re.compile(r"^from (zoo\.gym|trl|grpo\.trainer|training_with_unsloth\.framework\.\w+) import", re.MULTILINE)


@dataclass(frozen=True)
class Snippet:
    """A snippet, and how it is run.

    Args:
        document: first three digits of the document's file name.
        line: of its opening fence, from 1.
        fixture: what it runs on, in words.
        run: runs and checks it, given a `Stage`.
    """

    document: str
    line: int
    fixture: str
    run: Callable[[Any], None]

    @property
    def name(self) -> str:
        return f"{self.document}_{self.line:03d}"


CATALOGUE: list[Snippet] = []


def snippet(document: str, line: int, fixture: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Enter a function into the catalogue."""

    def enter(run: Callable[[Any], None]) -> Callable[[Any], None]:
        CATALOGUE.append(Snippet(document, line, fixture, run))
        return run

    return enter


def stored(name: str) -> str:
    return (SNIPPETS / f"{name}.txt").read_text(encoding="utf-8")


def runnable(name: str) -> str:
    """The snippet with its import lines naming `trl_grpo_ext.gym`."""
    return _IMPORT.sub("from trl_grpo_ext.gym import", stored(name))


def blocks(document: Path) -> dict[int, str]:
    """The Python blocks of a document by the line of their opening fence."""
    lines = document.read_text(encoding="utf-8").split("\n")
    starts = [number for number, line in enumerate(lines) if line == "```python"]
    ends = [lines.index("```", start + 1) for start in starts]
    return {start + 1: "\n".join(lines[start + 1 : end]) + "\n" for start, end in zip(starts, ends, strict=True)}

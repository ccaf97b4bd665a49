"""Files that an experience library imports: JSON in three formats, and snapshots in SQLite."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.target import Target
from tests.fuzz.values import TREES, damage_bytes, damage_tree

EPISODE = {"prompt": "2+2?", "response": "4", "advantage": 1.0, "timestamp": 3.0, "metadata": {"domain": "a"}}
LESSON = {"text": "Count twice.", "timestamp": 2.0, "metadata": {}, "uses": 2, "gain": 0.5}
FILES = (
    [EPISODE, EPISODE | {"response": "5", "reward": 0.0}],
    {"G0": "Count twice.", "G1": "Then add."},
    {
        "format": "trl-grpo-ext experiences",
        "config": {"group_size": 8},
        "counters": {"rollouts": 8, "stored": 1, "pruned": 0},
        "experiences": [EPISODE, LESSON],
    },
)


def _tree(draw: st.DrawFn) -> str:
    return json.dumps(damage_tree(draw, draw(st.sampled_from(FILES))))


def _bytes(draw: st.DrawFn) -> bytes:
    return damage_bytes(draw, json.dumps(draw(st.sampled_from(FILES)), ensure_ascii=False).encode())


@cache
def snapshot() -> bytes:
    """A library file of a few records."""
    from trl_grpo_ext.experience import Episode, ExperienceLibrary, Lesson

    with tempfile.TemporaryDirectory() as folder, ExperienceLibrary() as library:
        library.add(Lesson("Count twice."), *(Episode(f"prompt {n}", "r" * 40, 1.0 + n) for n in range(6)))
        library.save_snapshot(Path(folder) / "library.db")
        return (Path(folder) / "library.db").read_bytes()


def _snapshot(draw: st.DrawFn) -> bytes:
    return damage_bytes(draw, snapshot(), likely=120)


def _with_file(data: bytes, name: str, use: Any) -> None:
    from trl_grpo_ext.experience import ExperienceLibrary, Lesson

    with tempfile.TemporaryDirectory() as folder, ExperienceLibrary() as library:
        library.add(Lesson("kept"))
        (Path(folder) / name).write_bytes(data)
        before = library.version
        try:
            use(library, Path(folder) / name)
        except Exception:
            # All or nothing.
            assert library.version == before and [getattr(item, "text", "") for item in library] == ["kept"]
            raise


def json_import(given: str | bytes) -> None:
    """Import, then replace by, a JSON file; what comes in can be drawn, exported and read back."""
    data = given.encode("utf-8", "surrogatepass") if isinstance(given, str) else given

    def use(library: Any, path: Path) -> None:
        library.import_file(path)
        library.load_from_file(path)
        library.sample_multiple(3)
        library.export_file(path.with_name("again.json"))
        count = len(library)
        library.load_from_file(path.with_name("again.json"))
        assert len(library) == count

    _with_file(data, "library.json", use)


def snapshot_import(data: bytes) -> None:
    """Load a snapshot; what was accepted can be listed."""

    def use(library: Any, path: Path) -> None:
        library.load_snapshot(path)

    _with_file(data, "library.db", use)


def targets() -> list[Target]:
    """The targets of this file."""
    from trl_grpo_ext.experience import ExperienceError

    files = st.one_of(st.composite(_tree)(), st.composite(_bytes)(), TREES.map(json.dumps))
    return [
        Target("library import", files, json_import, (ValueError, ExperienceError)),
        Target("library snapshot", st.composite(_snapshot)(), snapshot_import, (ValueError, ExperienceError)),
    ]

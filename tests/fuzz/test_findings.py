"""What fuzzing has found, each as the value that it was found with."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import deltas, libraries, run_files
from tests.fuzz.target import Target
from trl_grpo_ext.experience import ExperienceError

INDEXES = (
    None,
    [],
    {"lm_head.weight": None},
    {"lm_head.weight": ["model.safetensors"]},
    {"a": "../secret.safetensors"},
)


@pytest.fixture(scope="module", autouse=True)
def without_leftovers() -> Iterator[None]:
    yield
    deltas.forget()


def target(targets: Callable[[], list[Target]], name: str) -> Target:
    return next(item for item in targets() if item.name == name)


def refused(found: Target, value: Any) -> str:
    """The message of a documented error."""
    with pytest.raises(found.errors) as caught:
        found.check(value)
    return str(caught.value)


@pytest.mark.parametrize("places", INDEXES)
def test_an_index_that_names_no_files_beside_it(places: Any) -> None:
    data = json.dumps({"weight_map": places}).encode()
    found = target(deltas.targets, "checkpoint files")
    assert "weight_map must name files beside it" in refused(found, (deltas.INDEX, data))


@pytest.mark.parametrize("file", ["config.json", deltas.INDEX])
def test_json_that_is_no_object(file: str) -> None:
    found = target(deltas.targets, "checkpoint files")
    assert "must hold a JSON object" in refused(found, (file, b"[]"))


def header(change: Callable[[dict[str, Any]], None]) -> bytes:
    """The base's safetensors file with another header."""
    data = (deltas.folders()["base"] / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    change(entries)
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def test_a_dtype_that_is_no_text() -> None:
    found = target(deltas.targets, "checkpoint files")
    data = header(lambda entries: entries["model.norm.weight"].update(dtype=[]))
    assert "unknown dtype" in refused(found, ("model.safetensors", data))


def test_a_dtype_of_the_table_that_is_no_text() -> None:
    table = json.loads((deltas.folders()["delta"] / deltas.TABLE).read_text(encoding="utf-8"))
    table["tensors"]["model.norm.weight"]["dtype"] = ["BF16"]
    found = target(deltas.targets, "delta files")
    assert "dtype is not what the format has" in refused(found, ("delta", (deltas.TABLE, json.dumps(table).encode())))


def test_a_header_that_contradicts_itself() -> None:
    """Two tensors at one place: our own look at the header accepts each, the safetensors library not both."""

    def overlap(entries: dict[str, Any]) -> None:
        names = [name for name in entries if name.endswith("layernorm.weight")]
        entries[names[0]]["data_offsets"] = entries[names[1]]["data_offsets"]

    found = target(deltas.targets, "checkpoint files")
    assert "offset" in refused(found, ("model.safetensors", header(overlap)))


@pytest.mark.parametrize("settings", ['{"grofp_size": 8}', "[]", "{", '{"group_size": "8"}'])
def test_a_snapshot_with_damaged_settings_replaces_nothing(settings: str, tmp_path: Path) -> None:
    from trl_grpo_ext.experience import ExperienceLibrary, Lesson

    path = tmp_path / "library.db"
    with ExperienceLibrary() as library:
        library.add(Lesson("theirs"))
        library.save_snapshot(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'config'", (settings,))
    with ExperienceLibrary() as library:
        library.add(Lesson("ours"))
        with pytest.raises(ExperienceError, match="settings of the file are damaged"):
            library.load_snapshot(path)
        assert [item.text for item in library if isinstance(item, Lesson)] == ["ours"]


@pytest.mark.parametrize("place", [18, 19])
def test_a_snapshot_of_a_later_file_format_replaces_nothing(place: int) -> None:
    """SQLite reads it into the library, and then refuses to write."""
    data = bytearray(libraries.snapshot())
    data[place] = 3
    assert "is damaged (file format" in refused(target(libraries.targets, "library snapshot"), bytes(data))


def test_names_that_are_too_long_for_a_file_system() -> None:
    index = json.dumps({"weight_map": {"lm_head.weight": 300 * "a"}}).encode()
    message = refused(target(deltas.targets, "checkpoint files"), (deltas.INDEX, index))
    assert "is missing" in message
    given = (run_files.EXAMPLE.read_bytes(), ["policy=" + 300 * "a"])
    message = refused(target(run_files.targets, "train-free file"), given)
    assert "policy" in message


@pytest.mark.skipif(importlib.util.find_spec("llamafactory") is None, reason="needs LLaMA-Factory (line A)")
@pytest.mark.parametrize("formatting", [[], {}, None, 3])
def test_a_formatting_that_is_no_text(formatting: Any) -> None:
    from tests.fuzz import rows

    info = {"rows": {"file_name": "rows.json", "formatting": formatting, "columns": {"prompt": "q"}}}
    assert "has the formatting" in refused(target(rows.targets, "dataset_info.json"), info)

"""JSON in and out: the mission's list of episodes, Training-Free GRPO's {"G0": "..."} and a whole library."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_grpo_ext.experience.records import Episode, Lesson, Record, finite
from trl_grpo_ext.experience.rows import Stored

FORMAT = "trl-grpo-ext experiences"
_COUNTERS = ("rollouts", "stored", "pruned")
_LESSON_KEY = re.compile(r"G(\d+)")


@dataclass
class Contents:
    """What a file holds. `uses` maps ids to (uses, sum of gains); `counters` come with a whole library."""

    records: list[Record] = field(default_factory=list)
    uses: dict[str, tuple[int, float]] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)


def episode_json(episode: Episode) -> dict[str, Any]:
    """Return an episode in the mission's format; "reward" comes on top where it is known."""
    plain = {
        "prompt": episode.prompt,
        "response": episode.response,
        "advantage": episode.advantage,
        "timestamp": episode.timestamp,
        "metadata": dict(episode.metadata),
    }
    return plain if episode.reward is None else plain | {"reward": episode.reward}


def record_json(record: Record) -> dict[str, Any]:
    """Return an episode in the mission's format, or a lesson with what {"G0": "..."} has no place for."""
    if isinstance(record, Episode):
        return episode_json(record)
    return {"text": record.text, "timestamp": record.timestamp, "metadata": dict(record.metadata)}


def stored_json(item: Stored) -> dict[str, Any]:
    """Return a record with its uses."""
    plain = record_json(item.record)
    return plain | {"uses": item.uses, "gain": item.gain} if item.uses else plain


def numbered_lessons(lessons: Iterable[Lesson]) -> dict[str, str]:
    """Return lessons in Training-Free GRPO's format, numbered in their stable order."""
    return {f"G{number}": lesson.text for number, lesson in enumerate(lessons)}


def write_json(path: str | os.PathLike[str], parts: Iterable[str]) -> None:
    """Write a text piece by piece beside the target and put it in place in one step.

    Raises:
        OSError: the folder is missing or can't be written to; a file that stood there is as it was.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes a file for its owner only.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def json_list(items: Iterable[Any]) -> Iterator[str]:
    """Return the pieces of a JSON list, one item a line."""
    before = "[\n"
    for item in items:
        yield before + json.dumps(item, ensure_ascii=False, allow_nan=False)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def library_json(settings: Mapping[str, Any], counters: Mapping[str, int], episodes: Iterator[str]) -> Iterator[str]:
    """Return the pieces of a whole library; `episodes` are the pieces of the list of its records."""
    header = {"format": FORMAT, "config": dict(settings), "counters": dict(counters)}
    yield json.dumps(header, ensure_ascii=False)[:-1] + ',\n"experiences": '
    yield from episodes
    yield "}\n"


def _episode(row: Any, where: str) -> Record:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} must be an object with prompt, response and advantage, not {type(row).__name__}.")
    others = {name: row[name] for name in ("timestamp", "metadata", "reward") if row.get(name) is not None}
    try:
        if "text" in row:
            others.pop("reward", None)
            return Lesson(row["text"], **others)
        return Episode(row["prompt"], row["response"], row["advantage"], **others)
    except KeyError as error:
        raise ValueError(f"{where} has no {error}; a record needs prompt, response and advantage, or text.") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _records(rows: list[Any], name: str) -> Contents:
    found = Contents()
    for place, row in enumerate(rows):
        record = _episode(row, f"{name}: record {place}")
        found.records.append(record)
        if row.get("uses"):
            where = f"{name}: record {place}"
            found.uses[record.id] = (
                int(finite(row["uses"], "uses", where)),
                finite(row.get("gain", 0), "gain", where),
            )
    return found


def _numbered(data: Mapping[str, Any], name: str) -> Contents:
    keys = {key: _LESSON_KEY.fullmatch(key) for key in data}
    wrong = [key for key, match in keys.items() if match is None]
    if wrong:
        raise ValueError(f"{name}: {wrong[0]!r} is no lesson number; the keys of a lesson file are G0, G1, ...")
    ordered = sorted(data, key=lambda key: int(key[1:]))
    try:
        return Contents([Lesson(data[key]) for key in ordered])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def parse(data: Any, name: str) -> Contents:
    """Return what a decoded JSON file holds, in any of the three formats.

    Raises:
        ValueError: none of the formats, or a record that is wrong; says which one.
    """
    if isinstance(data, list):
        return _records(data, name)
    if not isinstance(data, dict):
        raise ValueError(f'{name}: neither a list of episodes nor {{"G0": "..."}} nor a saved library.')
    if "experiences" not in data:
        return _numbered(data, name)
    if not isinstance(data["experiences"], list):
        raise ValueError(f"{name}: experiences must be a list.")
    found = _records(data["experiences"], name)
    counters = data.get("counters") or {}
    if not isinstance(counters, dict) or not all(isinstance(counters.get(key, 0), int) for key in _COUNTERS):
        raise ValueError(f"{name}: counters must map {', '.join(_COUNTERS)} to whole numbers.")
    found.counters = {key: counters[key] for key in _COUNTERS if key in counters}
    return found


def read_file(path: str | os.PathLike[str]) -> Contents:
    """Return what a JSON file holds.

    Raises:
        OSError: it can't be read.
        ValueError: no JSON, or what `parse` refuses.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file: {error}.") from error
    return parse(data, str(path))

"""What the library holds: episodes (rollouts that beat their group) and lessons (short texts). Standard library only."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


def content_id(*parts: str) -> str:
    """Return the id of a content: 32 hexadecimal digits of SHA-256 over the parts and their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]


def clean_text(value: Any, name: str, where: str = "Episode") -> str:
    """Return a text that can be stored: half surrogate pairs, which have no UTF-8, become question marks.

    Raises:
        TypeError: not a string.
        ValueError: nothing but white space.
    """
    if not isinstance(value, str):
        raise TypeError(f"{where}: {name} must be a string, not {type(value).__name__}.")
    if not value.strip():
        raise ValueError(f"{where}: {name} is empty; leave the record out.")
    return value.encode("utf-8", "replace").decode()


def finite(value: Any, name: str, where: str = "Episode") -> float:
    """Return a finite float.

    Raises:
        ValueError: not a number, or NaN or infinite.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, str | bytes) or not math.isfinite(number):
        raise ValueError(f"{where}: {name} must be a finite number, not {value!r}.")
    return number


def plain_metadata(metadata: Mapping[str, Any], where: str = "Episode") -> dict[str, Any]:
    """Return metadata as JSON would give it back: tuples become lists.

    Raises:
        ValueError: a key that is no string, or a value that JSON does not have (NaN and objects, for example).
    """
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
        raise ValueError(f"{where}: metadata must map strings to JSON values, not {metadata!r}.")
    try:
        text = json.dumps(dict(metadata), allow_nan=False).encode("utf-8", "replace")
        return dict(json.loads(text)) if metadata else {}
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: metadata can't be written as JSON: {error}.") from error


@dataclass(frozen=True, slots=True)
class Episode:
    """A rollout worth remembering.

    Args:
        prompt: the prompt as the dataset has it, without anything injected; never empty.
        response: the completion; never empty.
        advantage: reward minus the group's mean reward.
        timestamp: seconds since the epoch; now by default.
        metadata: JSON values by name, for filters and tags ("domain" has a quota of its own); empty by default.
        reward: the reward itself, where it is known.

    Raises:
        TypeError: a text that is no string.
        ValueError: an empty text, a number that is not finite, metadata that JSON can't hold.
    """

    prompt: str
    response: str
    advantage: float
    timestamp: float = field(default_factory=time.time)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    reward: float | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "response"):
            object.__setattr__(self, name, clean_text(getattr(self, name), name))
        for name in ("advantage", "timestamp"):
            object.__setattr__(self, name, finite(getattr(self, name), name))
        if self.reward is not None:
            object.__setattr__(self, "reward", finite(self.reward, "reward"))
        object.__setattr__(self, "metadata", plain_metadata(self.metadata))

    @property
    def id(self) -> str:
        """Content hash of prompt and response: the same pair is one record, whenever it is sampled."""
        return content_id("episode", self.prompt, self.response)

    def age_seconds(self, now: float | None = None) -> float:
        """Return the age in seconds; 0 when the clock has gone backwards."""
        return max(0.0, (time.time() if now is None else now) - self.timestamp)

    def is_stale(self, max_age: float, now: float | None = None) -> bool:
        """Return whether the episode is older than `max_age` seconds."""
        return self.age_seconds(now) > max_age


@dataclass(frozen=True, slots=True)
class Lesson:
    """A short text learned by comparing rollouts, such as "Units: when two units meet, convert first".

    Args:
        text: the lesson; never empty.
        timestamp: seconds since the epoch; now by default.
        metadata: JSON values by name, for filters and tags; empty by default.

    Raises:
        TypeError: a text that is no string.
        ValueError: an empty text, a timestamp that is not finite, metadata that JSON can't hold.
    """

    text: str
    timestamp: float = field(default_factory=time.time)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", clean_text(self.text, "text", "Lesson"))
        object.__setattr__(self, "timestamp", finite(self.timestamp, "timestamp", "Lesson"))
        object.__setattr__(self, "metadata", plain_metadata(self.metadata, "Lesson"))

    @property
    def id(self) -> str:
        """Content hash of the text. In a library a lesson keeps the id of its first text when it is reworded."""
        return content_id("lesson", self.text)


Record: TypeAlias = Episode | Lesson

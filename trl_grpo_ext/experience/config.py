"""How much a library keeps, for how long, and how it draws. Names, defaults and ranges are the mission guide's."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

_RANGES: dict[str, tuple[float, float]] = {
    "group_size": (4, 32),
    "max_library_size": (1_000, 1_000_000),
    "max_experience_age": (3_600, 2_592_000),
    "min_advantage_threshold": (-1.0, 1.0),
    "sampling_temperature": (0.1, 2.0),
    "prune_to": (0.5, 1.0),
    "max_history": (1_000, 10_000_000),
}
_OPTIONAL = ("max_per_prompt", "max_per_domain", "max_history")
_WHOLE = ("group_size", "max_library_size", *_OPTIONAL)


def _check_number(name: str, value: Any) -> None:
    whole = name in _WHOLE
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ValueError(f"ExperienceConfig: {name} must be {'an integer' if whole else 'a number'}, not {value!r}.")
    low, high = _RANGES.get(name, (1, 1_000_000))
    if not low <= value <= high:
        raise ValueError(f"ExperienceConfig: {name} must be in [{low:g}, {high:g}], not {value!r}.")


@dataclass(frozen=True)
class ExperienceConfig:
    """Configuration of an experience library.

    Args:
        group_size: rollouts per prompt that the run plans, in [4, 32]; groups of other sizes are stored all the same.
        max_library_size: most episodes kept, in [1000, 1000000]. Lessons do not count.
        max_experience_age: seconds after which an episode is retired, in [3600, 2592000].
        min_advantage_threshold: episodes are kept when their advantage is strictly above it, in [-1, 1].
        sampling_temperature: T of P(i) = exp(A_i / T) / sum_j exp(A_j / T), in [0.1, 2].
        use_advantage_weighting: False draws uniformly.
        max_per_prompt: most episodes of one prompt; no limit by default.
        max_per_domain: most episodes with one value of the metadata key "domain"; no limit by default.
        prune_to: a full library is pruned to this share of its size, in [0.5, 1], so that not every later group
            prunes again.
        max_history: operations (a record added, retired or changed) that can be undone by a rollback, and groups that
            are known when they are given once more, in [1000, 10000000]; twice `max_library_size` by default. A
            quarter more is kept at times. Older retired records are deleted, so that the file does not grow for ever.

    Raises:
        ValueError: a value of the wrong type or outside its range.
    """

    group_size: int = 8
    max_library_size: int = 10_000
    max_experience_age: float = 604_800
    min_advantage_threshold: float = 0.0
    sampling_temperature: float = 1.0
    use_advantage_weighting: bool = True
    max_per_prompt: int | None = None
    max_per_domain: int | None = None
    prune_to: float = 0.95
    max_history: int | None = None

    def __post_init__(self) -> None:
        for name in dict.fromkeys((*_RANGES, *_OPTIONAL)):
            if getattr(self, name) is not None or name not in _OPTIONAL:
                _check_number(name, getattr(self, name))
        if not isinstance(self.use_advantage_weighting, bool):
            value = self.use_advantage_weighting
            raise ValueError(f"ExperienceConfig: use_advantage_weighting must be True or False, not {value!r}.")
        if self.min_advantage_threshold < 0:
            warnings.warn(
                f"min_advantage_threshold={self.min_advantage_threshold} keeps rollouts that are worse than their "
                "group's mean; 0.0 keeps the better ones only.",
                stacklevel=3,
            )

    @property
    def temperature(self) -> float:
        """The temperature that draws use: infinite, which is uniform, without advantage weighting."""
        return self.sampling_temperature if self.use_advantage_weighting else float("inf")

    @property
    def history_limit(self) -> int:
        """Operations and groups that are remembered."""
        return 2 * self.max_library_size if self.max_history is None else self.max_history

    @property
    def fingerprint(self) -> str:
        """Short hash of every setting."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the settings as JSON; whole floats as integers, so that 3600 and 3600.0 are one setting."""
        plain = {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in asdict(self).items()
        }
        return json.dumps(plain, sort_keys=True)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ExperienceConfig:
        """Return the configuration of a mapping.

        Raises:
            ValueError: a name that there is not, or a value outside its range.
        """
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"ExperienceConfig: unknown setting {unknown[0]!r}; there are {', '.join(sorted(known))}."
            )
        return cls(**values)

    def difference(self, other: ExperienceConfig) -> str:
        """Return what differs, as "name: here -> there"."""
        mine, theirs = json.loads(self.to_json()), json.loads(other.to_json())
        return ", ".join(f"{name}: {mine[name]} -> {theirs[name]}" for name in mine if mine[name] != theirs[name])

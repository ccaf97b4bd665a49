"""How a weight changes over training: functions of the progress p in [0, 1]. Standard library only."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from trl_grpo_ext._suggest import did_you_mean

Schedule = Callable[[float], float]


def training_progress(trainer_state: Any) -> float:
    """global_step / max_steps in [0, 1]; 0.0 without a trainer state, and before training has set `max_steps`."""
    steps = getattr(trainer_state, "max_steps", 0) or 0
    if steps <= 0:
        return 0.0
    return min(max(trainer_state.global_step / steps, 0.0), 1.0)


def _check_finite(schedule: str, **values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{schedule}: {name} must be a finite number, not {value!r}.")


def _check_interval(schedule: str, begin: float, until: float) -> None:
    if not 0 <= begin < until <= 1:
        raise ValueError(
            f"{schedule}: begin and until must satisfy 0 <= begin < until <= 1, not begin={begin}, until={until}; "
            "they are shares of training (0.5 is half of max_steps)."
        )


@dataclass(frozen=True)
class Constant:
    """`value` all the time (default 1.0).

    Raises:
        ValueError: `value` is not a finite number.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        _check_finite("constant", value=self.value)

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class Linear:
    """start + (end - start) * t, with t = (p - begin) / (until - begin) kept in [0, 1].

    Args:
        start: the value up to `begin`.
        end: the value from `until` on.
        begin: share of training at which the change begins; 0.0 by default.
        until: share of training at which it ends; 1.0 by default.

    Raises:
        ValueError: not 0 <= begin < until <= 1, or a value that is not a finite number.
    """

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        name = type(self).__name__.lower()
        _check_finite(name, start=self.start, end=self.end, begin=self.begin, until=self.until)
        _check_interval(name, self.begin, self.until)

    def _position(self, progress: float) -> float:
        return min(max((progress - self.begin) / (self.until - self.begin), 0.0), 1.0)

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * self._position(progress)


@dataclass(frozen=True)
class Cosine(Linear):
    """start + (end - start) * (1 - cos(pi * t)) / 2, with the t, arguments and errors of `Linear`."""

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * (1 - math.cos(math.pi * self._position(progress))) / 2


@dataclass(frozen=True)
class Step:
    """The value of the last milestone reached.

    Args:
        milestones: (progress, value) pairs in rising order of progress, the first at 0.

    Raises:
        ValueError: no milestone, the first not at 0, not in rising order, beyond 1, or not finite numbers.
    """

    milestones: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        pairs = tuple(tuple(pair) for pair in self.milestones)
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"step: milestones must be [progress, value] pairs, not {list(pairs)!r}.")
        for place, value in pairs:
            _check_finite("step", progress=place, value=value)
        places = [place for place, _ in pairs]
        if not places or places[0] != 0 or places != sorted(set(places)) or places[-1] > 1:
            raise ValueError(
                f"step: milestones must begin at progress 0 and rise to at most 1, not {places}; "
                "write [[0, 1.0], [0.5, 0.2]] for 1.0 in the first half of training and 0.2 in the second."
            )
        # YAML gives lists; a frozen, hashable object holds tuples.
        object.__setattr__(self, "milestones", pairs)

    def __call__(self, progress: float) -> float:
        return [value for place, value in self.milestones if place <= progress][-1]


SCHEDULES: Mapping[str, type] = MappingProxyType(
    {"constant": Constant, "linear": Linear, "cosine": Cosine, "step": Step}
)


def make_schedule(spec: Any) -> Schedule:
    """Build a schedule from a number, a mapping, or a schedule.

    Args:
        spec: a number (`Constant`), `{"kind": "linear", "start": 1.0, "end": 0.0, "until": 0.5}` (the fields of the
            class), or a callable, which is returned as it is.

    Raises:
        ValueError: an unknown kind or field, a missing field, or a value that the class refuses.
    """
    if callable(spec):
        return spec
    if isinstance(spec, int | float):
        return Constant(spec)
    if not isinstance(spec, Mapping) or spec.get("kind") not in SCHEDULES:
        kind = spec.get("kind") if isinstance(spec, Mapping) else spec
        raise ValueError(
            f"schedule: kind must be one of {', '.join(SCHEDULES)}, not {kind!r}{did_you_mean(str(kind), SCHEDULES) or '.'}"
        )
    cls = SCHEDULES[spec["kind"]]
    options = {name: value for name, value in spec.items() if name != "kind"}
    names = [field.name for field in fields(cls)]
    for name in options:
        if name not in names:
            raise ValueError(
                f"schedule {spec['kind']}: unknown option {name!r}{did_you_mean(name, names) or '.'} "
                f"Options: {', '.join(names)}."
            )
    try:
        return cls(**options)
    except TypeError as error:
        raise ValueError(f"schedule {spec['kind']}: {error}. Options: {', '.join(names)}.") from error

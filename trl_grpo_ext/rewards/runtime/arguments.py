"""TRL's arguments of a reward call, taken apart for workers, and the replay of what the workers logged."""

import dataclasses
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Callables and live objects of the trainer's process: each has its own way, or none, into a worker.
NOT_COLUMNS = frozenset({"trainer_state", "log_extra", "log_metric", "environments"})
_DROP = object()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        items = {key: _plain(item) for key, item in value.items() if isinstance(key, (str, int))}
        return {key: item for key, item in items.items() if item is not _DROP}
    if isinstance(value, (list, tuple)):
        return [item for item in map(_plain, value) if item is not _DROP]
    return _DROP


def pickled_state(state: Any) -> bytes | None:
    """Return the trainer's state as pickled plain values (numbers, texts, lists, dictionaries); None for None."""
    if state is None:
        return None
    names = [field.name for field in dataclasses.fields(state)] if dataclasses.is_dataclass(state) else vars(state)
    plain = {name: _plain(getattr(state, name)) for name in names}
    return pickle.dumps({name: value for name, value in plain.items() if value is not _DROP})


def split_columns(count: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a reward call: one value per completion each. `plain_prompt` takes the place of `prompts`.

    Raises:
        ValueError: an argument has another number of values.
    """
    columns = {name: value for name, value in arguments.items() if name not in NOT_COLUMNS and value is not None}
    for name, values in columns.items():
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or len(values) != count:
            size = f"{len(values)} values" if isinstance(values, Sequence) else type(values).__name__
            raise ValueError(
                f"Reward argument {name!r} must be a list with one value per completion ({count}), not {size}."
            )
    if "plain_prompt" in columns:
        columns["prompts"] = columns["plain_prompt"]
    return columns


def rows_of(columns: Mapping[str, Sequence[Any]], count: int) -> list[dict[str, Any]]:
    """Return each row as a dictionary."""
    return [{name: values[index] for name, values in columns.items()} for index in range(count)]


def _pairs(reply: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    pairs = reply.get(name)
    if not isinstance(pairs, list):
        return []
    return [(pair[0], pair[1]) for pair in pairs if isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is str]


def replay_extra(calls: Sequence[tuple[Mapping[str, Any], list[int]]], rows: int, log: Callable[..., Any]) -> None:
    """Call `log_extra(column, values)` once per column, with None for the rows that logged nothing.

    Args:
        calls: each call's reply, and the rows it was about.
        rows: number of completions.
        log: TRL's `log_extra`.
    """
    columns: dict[str, list[Any]] = {}
    for reply, indices in calls:
        for column, values in _pairs(reply, "extra"):
            if isinstance(values, list) and len(values) == len(indices):
                target = columns.setdefault(column, [None] * rows)
                for index, value in zip(indices, values, strict=True):
                    target[index] = value
    for column, values in columns.items():
        log(column, values)


def replay_metrics(replies: Sequence[Mapping[str, Any]], log: Callable[..., Any]) -> None:
    """Call `log_metric(name, value)` once per name, with the mean over the calls that logged it."""
    numbers: dict[str, list[float]] = {}
    for reply in replies:
        for name, value in _pairs(reply, "metrics"):
            if isinstance(value, (int, float)) and math.isfinite(value):
                numbers.setdefault(name, []).append(float(value))
    for name, values in numbers.items():
        log(name, sum(values) / len(values))

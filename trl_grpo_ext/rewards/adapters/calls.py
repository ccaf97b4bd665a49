"""Calls of other people's reward functions: errors become values, coroutines are awaited, results become lists."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from trl_grpo_ext.rewards.adapters.event_loop import exit_error, run_awaitables

# Arguments of functions that score all rows in one call.
WHOLE_BATCH = ("prompts", "completions", "completion_ids")


def callable_name(func: Any) -> str:
    """Return the name of a function, or of what a `functools.partial` calls, or of an object's class."""
    while isinstance(func, functools.partial):
        func = func.func
    return getattr(func, "__name__", type(func).__name__)


def attempt(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what `func` returns, or the exception that it raised. An async function returns its coroutine.

    `sys.exit()` in it is an exception like others; an interrupt from the keyboard is not.
    """
    try:
        return func(*args, **kwargs)
    except SystemExit as error:
        return exit_error(error)
    except Exception as error:
        return error


def awaited(outcomes: Iterable[Any]) -> list[Any]:
    """Replace every awaitable by its result or its exception; all of them run at the same time."""
    settled = list(outcomes)
    waiting = [index for index, outcome in enumerate(settled) if inspect.isawaitable(outcome)]
    if waiting:
        results = run_awaitables([settled[index] for index in waiting])
        for index, result in zip(waiting, results, strict=True):
            settled[index] = result
    return settled


def call_rows(func: Callable[..., Any], rows: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Call `func(**row)` for each row, sync or async. An outcome that is an exception is that row's error."""
    return awaited(attempt(func, **row) for row in rows)


def call_once(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `func` once, sync or async, and return its result or its exception."""
    return awaited([attempt(func, *args, **kwargs)])[0]


def as_list(name: str, result: Any, size: int) -> list[Any]:
    """Return the result of a batch function as a list: a list, a tuple, or anything with `tolist()`. An exception
    stands for every row.

    Raises:
        ValueError: another type, or not one result per row.
    """
    if isinstance(result, Exception):
        return [result] * size
    values = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(values, (list, tuple)):
        raise ValueError(
            f"Reward {name!r} returned {type(values).__name__}, not a list of {size} rewards; return one number, or "
            "None, per completion."
        )
    return check_length(name, list(values), size)


def check_length(name: str, values: list[Any], size: int) -> list[Any]:
    """Return `values` when there is one per row.

    Raises:
        ValueError: another number.
    """
    if len(values) != size:
        raise ValueError(
            f"Reward {name!r} returned {len(values)} rewards for {size} completions; return exactly one number, or "
            "None, per completion, in their order."
        )
    return values


def as_reward(outcome: Any) -> float | Exception | None:
    """Return a single result as a finite float, None for a skipped row, or an exception that says why it is neither.

    Numbers, numpy scalars and tensors of one element are taken; strings are not.
    """
    if outcome is None or isinstance(outcome, Exception):
        return outcome
    if isinstance(outcome, (str, bytes)):
        return TypeError(f"the result is the string {outcome[:80]!r}, not a number")
    reward = attempt(float, outcome)
    if isinstance(reward, Exception):
        return TypeError(f"the result is a {type(outcome).__name__}, not a number ({reward})")
    return reward if math.isfinite(reward) else ValueError(f"the result is {reward}, not a finite number")

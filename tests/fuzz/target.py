"""What a fuzz target is: a strategy, a function that takes what it draws, and the only errors the function may raise."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

# Found examples are printed, never kept: a run must not depend on an earlier one.
_QUIET = {
    "database": None,
    "deadline": None,
    "report_multiple_bugs": False,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.generate, Phase.shrink),
}


@dataclass(frozen=True)
class Target:
    """A contract.

    Args:
        name: for messages.
        strategy: what is drawn.
        check: takes a drawn value; may raise `errors`, and AssertionError where a result is wrong.
        errors: the documented errors, each with a message that is not empty.
    """

    name: str
    strategy: SearchStrategy[Any]
    check: Callable[[Any], None]
    errors: tuple[type[Exception], ...]

    def run(self, examples: int, number: int) -> int:
        """Draw values and hold the function to its contract; return how many were tried.

        Raises:
            Exception: what the contract does not allow, for the smallest value that hypothesis found.
        """
        tried = 0

        @seed(number)
        @settings(max_examples=examples, **_QUIET)
        @given(self.strategy)
        def one(value: Any) -> None:
            nonlocal tried
            tried += 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    self.check(value)
                except self.errors as error:
                    assert str(error).strip(), f"{type(error).__name__} without a message"

        one()
        return tried

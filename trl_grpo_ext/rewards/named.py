"""What the configurable rewards share: a name under which TRL logs them, and checks of their settings."""

import math
from typing import Any


class NamedReward:
    """Base of the configurable rewards: frozen dataclasses whose field `name` is their `__name__`.

    TRL logs a reward under its `__name__`; two configurations of one class in the same run need two names. Instances
    are plain data, so they pickle, compare by value and can be sent to worker processes.
    """

    name: str

    @property
    def __name__(self) -> str:
        return self.name


def check_finite(reward: str, argument: str, value: Any, at_least: float = -math.inf) -> None:
    """Raise unless `value` is a finite number that is at least `at_least`.

    Raises:
        ValueError: it is not; the message names the reward, the argument, the rule and the value.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < at_least:
        rule = "a finite number" if at_least == -math.inf else f"a finite number of at least {at_least:g}"
        raise ValueError(f"{reward}: {argument} must be {rule}, not {value!r}.")


def check_count(reward: str, argument: str, value: Any, at_least: int) -> None:
    """Raise unless `value` is an int that is at least `at_least`.

    Raises:
        ValueError: it is not; the message names the reward, the argument, the rule and the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{reward}: {argument} must be a whole number of at least {at_least}, not {value!r}.")

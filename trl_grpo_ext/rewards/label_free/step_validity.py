"""Reasoning-step validity: the share of steps that hold."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from trl_grpo_ext.rewards.label_free.arithmetic import check_steps
from trl_grpo_ext.rewards.text import completion_text

StepChecker = Callable[[str], Sequence[bool | float | None]]


class StepValidityReward:
    """Share of a completion's steps that are right: r = right / checked, in [0, 1]; None where no step was checked.

    By default the steps are the arithmetic ones of the text, re-computed exactly (`check_steps`): the process may be
    right while the answer is wrong, and the other way round. Failure modes: wrong reasoning without a formula is not
    seen; a policy can pad its text with `1 + 1 = 2` (combine it with a length or repetition reward, and watch
    `steps`); a completion without steps is skipped rather than bad, so a policy may stop writing them.

    Args:
        check: text -> one verdict per step: a bool or a number in [0, 1], None for a step that it abstains from;
            `check_steps` by default. A judge goes here.
        min_steps: with fewer checked steps the row is None; 1 by default.
        name: "step_validity" by default.

    Attributes:
        last_metrics: `<name>/steps`, mean number of checked steps per completion in the last call; also logged where
            TRL passes `log_metric`.

    Raises:
        ValueError: `min_steps` is not a whole number of at least 1; in a call: a verdict outside [0, 1].
    """

    def __init__(self, check: StepChecker = check_steps, min_steps: int = 1, name: str = "step_validity") -> None:
        if not isinstance(min_steps, int) or isinstance(min_steps, bool) or min_steps < 1:
            raise ValueError(f"step_validity: min_steps must be a whole number of at least 1, not {min_steps!r}.")
        self.__name__ = name
        self.check, self.min_steps = check, min_steps
        self.last_metrics: dict[str, float] = {}

    def _verdicts(self, text: str) -> list[float]:
        verdicts = [float(verdict) for verdict in self.check(text) if verdict is not None]
        for verdict in verdicts:
            if not 0 <= verdict <= 1:
                raise ValueError(f"{self.__name__}: a step's verdict must be from 0 to 1, or None, not {verdict!r}.")
        return verdicts

    def __call__(self, completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
        """Return one share, or None, per completion."""
        found = [self._verdicts(completion_text(completion)) for completion in completions]
        if found:
            self.last_metrics = {f"{self.__name__}/steps": sum(map(len, found)) / len(found)}
        if kwargs.get("log_metric") is not None:
            for name, value in self.last_metrics.items():
                kwargs["log_metric"](name, value)
        return [math.fsum(verdicts) / len(verdicts) if len(verdicts) >= self.min_steps else None for verdicts in found]

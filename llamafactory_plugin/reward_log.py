"""`log_metric` and `log_extra` for reward functions, which TRL passes since 1.0 and TRL 0.24 does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any

from trl_grpo_ext.rewards import RewardError, RewardLoadError

KEYWORDS = ("log_metric", "log_extra")
WAYS_OUT = (
    "grpo_reward_errors: skip gives such rows no reward; grpo_reward_timeout sets the deadline of a call. A function of "
    "a file runs in a worker without network (grpo_reward_network: true), which can write to its scratch folder only; "
    "grpo_reward_in_process: true runs it in the trainer, without deadline."
)


class RewardLog:
    """What the reward functions of one generation log.

    Attributes:
        metrics: name -> the numbers logged under it.
        extras: column -> one value per row.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, list[float]] = {}
        self.extras: dict[str, list[Any]] = {}
        # Bound once: rewards that are called with the very same objects know that they belong to one batch.
        self.keywords: dict[str, Callable[..., Any]] = {"log_metric": self.log_metric, "log_extra": self.log_extra}

    def log_metric(self, name: str, value: float) -> None:
        """Keep a number; those of one name are averaged."""
        self.metrics.setdefault(name, []).append(float(value))

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Keep a column of the completions file; further values of the same column follow."""
        self.extras.setdefault(column, []).extend(values)

    def take(self) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """The mean of each metric and the columns, and begin anew."""
        means = {name: sum(values) / len(values) for name, values in self.metrics.items()}
        extras = self.extras
        self.metrics, self.extras = {}, {}
        return means, extras


class LoggedReward:
    """A reward function that gets the two keywords, as far as it takes them; otherwise the function itself.

    Attributes:
        reward_funcs: the functions of the run in the order in which the trainer calls them. An `IsolatedReward` finds
            them here, at its caller, and starts the work of those after it.

    Raises:
        RewardError, RewardLoadError: in a call, as the function raises them, with the keys that offer a way out.
    """

    def __init__(self, reward: Callable[..., Any], log: RewardLog, reward_funcs: Sequence[Callable[..., Any]]) -> None:
        self.reward_funcs = list(reward_funcs)
        self.__name__ = reward.__name__
        self.__wrapped__ = reward
        self._log = {name: value for name, value in log.keywords.items() if takes(reward, name)}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.__wrapped__(*args, **self._log, **kwargs)
        except (RewardError, RewardLoadError) as error:
            error.add_note(WAYS_OUT)
            raise


def takes(reward: Callable[..., Any], keyword: str) -> bool:
    """Whether a function can be called with this keyword."""
    try:
        parameters = inspect.signature(reward).parameters
    except (TypeError, ValueError):
        return False
    return keyword in parameters or any(item.kind is Parameter.VAR_KEYWORD for item in parameters.values())


def with_extras(rows: Sequence[Mapping[str, Any]], extras: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The rows of the completions file with what the rewards said about each, under `extra`; texts where JSON ends."""
    kept = {column: values for column, values in extras.items() if len(values) == len(rows)}
    return [
        {**row, **({"extra": {column: _plain(values[index]) for column, values in kept.items()}} if kept else {})}
        for index, row in enumerate(rows)
    ]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def mean_over_ranks(gathered: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the ranks that logged it."""
    names = dict.fromkeys(name for metrics in gathered for name in metrics)
    found = {name: [metrics[name] for metrics in gathered if name in metrics] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}

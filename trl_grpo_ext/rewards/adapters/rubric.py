"""Rubrics after `verifiers`: weighted functions that take their arguments by name."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter
from typing import Any

from trl_grpo_ext.rewards.adapters.base import ErrorPolicy, RewardAdapter
from trl_grpo_ext.rewards.adapters.batch import RewardBatch
from trl_grpo_ext.rewards.adapters.calls import WHOLE_BATCH, as_reward, attempt, awaited, callable_name

RubricFunction = Callable[..., Any]

# What `verifiers` gives for a column that the dataset lacks.
_DEFAULTS: Mapping[str, Callable[[], Any]] = {"answer": str, "task": lambda: "default", "info": dict}
_GIVEN = {"prompt", "completion", "state", "parser", *_DEFAULTS}


def _accepted(func: RubricFunction, values: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = inspect.signature(func).parameters
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return values
    return {name: value for name, value in values.items() if name in parameters}


def _required_columns(funcs: Sequence[RubricFunction]) -> list[str]:
    parameters = [parameter for func in funcs for parameter in inspect.signature(func).parameters.values()]
    named = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    needed = [p.name for p in parameters if p.kind in named and p.default is Parameter.empty]
    return [name for name in dict.fromkeys(needed) if name not in _GIVEN]


def _check_rows(rubric: str, funcs: Sequence[RubricFunction]) -> None:
    for func in funcs:
        for name in WHOLE_BATCH:
            if name in inspect.signature(func).parameters:
                raise ValueError(
                    f"Rubric {rubric!r}: {callable_name(func)!r} takes {name!r}, the rows of a whole batch, but is "
                    "called once per row; give it 'prompt' or 'completion', or make it a reward of its own (TRLReward)."
                )


def weighted_sum(outcomes: Sequence[Any], weights: Sequence[float]) -> float | Exception | None:
    """Return sum_k w_k * f_k; the first exception when a function failed, else None when one gave None."""
    scores = [as_reward(outcome) for outcome in outcomes]
    failure = next((score for score in scores if isinstance(score, Exception)), None)
    if failure is not None or None in scores:
        return failure
    return sum(weight * score for weight, score in zip(weights, scores, strict=True) if isinstance(score, float))


class RubricReward(RewardAdapter):
    """The weighted sum of functions, each called once per row with the arguments that it names.

    reward = sum_k w_k * f_k(row). Names: `prompt` (text or messages, without injected text), `completion` (as TRL
    passes it: text, or a list of messages), `answer`, `info`, `task` (the dataset's columns; "", {} and "default"
    without them), `parser`, any other column, and `state`, a dict with all of these but the parser, made anew for each
    row and shared by its functions. Sync functions run in the order given, async ones all at the same time after them.
    A `**kwargs` gets everything. The mean of each function, unweighted, is logged as `rewards/<name>/<function>`; a
    function of weight 0 is a metric only, but its errors count.

    Unlike `verifiers`, which scores a failing function 0, an error follows `on_error` and skips or replaces the whole
    row. A function may return None: the row gets no reward. Functions of whole groups are not supported.

    Args:
        funcs: the functions, with distinct names.
        weights: one per function; 1.0 each by default.
        parser: the object for the argument `parser`; None by default.
        name: the name that TRL logs.
        on_error: see `RewardAdapter`.

    Raises:
        ValueError: no function, two of one name, one that takes a whole batch, not one finite weight per function, or
            `on_error` is no policy.
    """

    def __init__(
        self,
        funcs: Sequence[RubricFunction],
        weights: Sequence[float] | None = None,
        parser: Any = None,
        *,
        name: str = "rubric",
        on_error: ErrorPolicy = "raise",
    ) -> None:
        self.funcs = list(funcs)
        self.weights = [1.0] * len(self.funcs) if weights is None else [float(weight) for weight in weights]
        self.names = [callable_name(func) for func in self.funcs]
        if not self.funcs or len(self.weights) != len(self.funcs):
            raise ValueError(
                f"Rubric {name!r} needs at least one function and one weight for each, not {len(self.funcs)} functions "
                f"and {len(self.weights)} weights."
            )
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"Rubric {name!r} has two functions of one name: {', '.join(self.names)}; rename one.")
        if not all(map(math.isfinite, self.weights)):
            raise ValueError(f"Rubric {name!r} needs finite weights, not {self.weights}.")
        _check_rows(name, self.funcs)
        super().__init__(name, on_error, _required_columns(self.funcs))
        self.parser = parser

    @classmethod
    def from_rubric(cls, rubric: Any, *, name: str | None = None, on_error: ErrorPolicy = "raise") -> "RubricReward":
        """Take functions, weights and parser from a `verifiers.Rubric` (`funcs` or `reward_funcs`, and so on).

        Raises:
            ValueError: an object without functions, and what the constructor raises.
        """
        funcs = getattr(rubric, "reward_funcs", None) or getattr(rubric, "funcs", None)
        if not isinstance(funcs, Sequence):
            raise ValueError(
                f"rubric must have a list `funcs` or `reward_funcs`, and {type(rubric).__name__} has none."
            )
        weights = getattr(rubric, "reward_weights", None) or getattr(rubric, "weights", None)
        parser = getattr(rubric, "parser", None)
        return cls(funcs, weights or None, parser, name=name or callable_name(rubric), on_error=on_error)

    def _rows(self, batch: RewardBatch) -> Iterator[dict[str, Any]]:
        for row in range(batch.size):
            values = {name: make() for name, make in _DEFAULTS.items()}
            values |= {name: column[row] for name, column in batch.columns.items()}
            values |= {"prompt": batch.prompts[row], "completion": batch.completions[row]}
            yield {**values, "state": values, "parser": self.parser}

    def _check_columns(self, batch: RewardBatch) -> None:
        for column in _required_columns(self.funcs):
            batch.column(column)

    def outcomes(self, batch: RewardBatch) -> list[Any]:
        """Call every function for every row and add up."""
        self._check_columns(batch)
        rows = list(self._rows(batch))
        results = awaited(attempt(func, **_accepted(func, values)) for values in rows for func in self.funcs)
        width = len(self.funcs)
        table = [results[start : start + width] for start in range(0, len(results), width)]
        for index, name in enumerate(self.names):
            self.note(name, [None if isinstance(row[index], Exception) else row[index] for row in table])
        return [weighted_sum(row, self.weights) for row in table]

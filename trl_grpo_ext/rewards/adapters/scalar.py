"""Functions that score one answer: `fn(query, response) -> float` and `fn(prompt, response, answer) -> float`."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any

from trl_grpo_ext.rewards.adapters.base import ErrorPolicy, RewardAdapter
from trl_grpo_ext.rewards.adapters.batch import RewardBatch
from trl_grpo_ext.rewards.adapters.calls import WHOLE_BATCH, call_rows, callable_name

_TEXTS = ("query", "prompt", "response", "completion")
_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def _parameters(name: str, func: Callable[..., Any]) -> list[Parameter]:
    """Return the parameters to be passed by name; a `**kwargs` among them stands for all other columns."""
    parameters = [p for p in inspect.signature(func).parameters.values() if p.kind is not Parameter.VAR_POSITIONAL]
    for parameter in parameters:
        if parameter.kind is Parameter.POSITIONAL_ONLY:
            raise ValueError(
                f"Reward {name!r} takes {parameter.name!r} by position only, but arguments are chosen by their names; "
                "remove the '/' from its definition."
            )
        if parameter.name in WHOLE_BATCH and parameter.kind in _NAMED:
            raise ValueError(
                f"Reward {name!r} takes {parameter.name!r}, the rows of a whole batch, but ScalarReward calls it once "
                "per row; use TRLReward, or name the argument 'prompt' or 'completion'."
            )
    if not any(parameter.kind in _NAMED for parameter in parameters):
        raise ValueError(
            f"Reward {name!r} names no argument, so ScalarReward can't tell what to pass; name them, such as "
            "(query, response), or put functools.wraps(function) on its wrapper."
        )
    return parameters


class ScalarReward(RewardAdapter):
    """A function of one row, sync or async; the names of its parameters decide what it gets.

    `query` is the text of the prompt's last user message, `prompt` the text of the whole prompt (each message's text
    with a newline after each; a plain string as it is), `response` and `completion` the text of the completion. Any
    other name is the dataset column of that name, `trainer_state` TRL's. Injected text is never seen: the column
    `plain_prompt`, where there is one, replaces the prompt. A parameter with a default may lack its column; `**kwargs`
    gets the remaining columns. All rows of an async function run at the same time.

    Args:
        func: returns a number, or None for no reward.
        columns: the dataset column for a parameter of another name, such as {"answer": "solution"}.
        name: the function's own name by default.
        on_error: see `RewardAdapter`.

    Raises:
        ValueError: the function takes a whole batch, takes an argument by position only, or names none; `columns`
            names a parameter that it lacks; `on_error` is no policy.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
        on_error: ErrorPolicy = "raise",
    ) -> None:
        name = name or callable_name(func)
        parameters = _parameters(name, func)
        named = {p.name: p.default is Parameter.empty for p in parameters if p.kind in _NAMED}
        self._columns = dict(columns or {})
        unknown = [parameter for parameter in self._columns if parameter not in named or parameter in _TEXTS]
        if unknown:
            raise ValueError(
                f"columns of reward {name!r} names {unknown[0]!r}, which is not a parameter of the function that a "
                f"column could fill; those are: {', '.join(p for p in named if p not in _TEXTS) or 'none'}."
            )
        required = [self._columns.get(p, p) for p, needed in named.items() if needed and p not in _TEXTS]
        super().__init__(name, on_error, required)
        self.func = func
        self._named = named
        self._takes_rest = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)

    def _value(self, batch: RewardBatch, parameter: str) -> Sequence[Any]:
        texts = {"query": batch.queries, "prompt": batch.prompt_texts}
        texts |= {"response": batch.responses, "completion": batch.responses}
        if parameter in texts:
            return texts[parameter]()
        if parameter in batch.context:
            return [batch.context[parameter]] * batch.size
        return batch.column(self._columns.get(parameter, parameter))

    def _has(self, batch: RewardBatch, parameter: str) -> bool:
        column = self._columns.get(parameter, parameter)
        return parameter in _TEXTS or column in batch.columns or column in batch.context

    def outcomes(self, batch: RewardBatch) -> list[Any]:
        """Call the function once per row."""
        wanted = [p for p, needed in self._named.items() if needed or self._has(batch, p)]
        if self._takes_rest:
            used = {*wanted, *(self._columns.get(p, p) for p in wanted), *_TEXTS}
            wanted += [column for column in batch.columns if column not in used]
        values = {parameter: self._value(batch, parameter) for parameter in wanted}
        rows = ({parameter: column[row] for parameter, column in values.items()} for row in range(batch.size))
        return call_rows(self.func, rows)

"""Does a reward function fit the dataset? Asked before training instead of a TypeError in the middle of it."""

import inspect
from collections.abc import Callable, Iterable
from inspect import Parameter
from typing import Any

from trl_grpo_ext._compat import reward_keywords, trl_version
from trl_grpo_ext._suggest import did_you_mean

TRL_KEYWORDS = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
)
# TRL hands these columns over under the plural name, or not at all.
_NOT_PASSED = {"prompt": "prompts", "completion": "completions", "completion_ids": "completion_ids"}
_WAY_OUT = 'add it to "columns": {"extra": [...]} in dataset_info.json or to --grpo_extra_columns'
_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _missing_sentence(name: str, parameter: str, columns: frozenset[str]) -> str:
    start = f"Reward function {name!r} needs the argument {parameter!r}, "
    if parameter in _NOT_PASSED:
        return start + f"which TRL passes as {_NOT_PASSED[parameter]!r}; rename the argument."
    if parameter in TRL_KEYWORDS:
        return start + f"which TRL {'.'.join(map(str, trl_version()))} does not pass; give it the default None."
    return (
        start + f"but the dataset has no such column{did_you_mean(parameter, columns) or '.'} "
        f"Available columns: {_listed(columns)}. If the data has it, {_WAY_OUT}."
    )


def _check_required(
    name: str, parameters: Iterable[Parameter], columns: frozenset[str], passed: frozenset[str]
) -> None:
    for parameter in parameters:
        if parameter.default is not Parameter.empty:
            continue
        if parameter.kind is Parameter.POSITIONAL_ONLY:
            raise ValueError(
                f"Reward function {name!r} takes {parameter.name!r} by position only, but TRL passes every argument "
                "by name; remove the '/' from its definition."
            )
        if parameter.kind in _NAMED and parameter.name not in columns | passed:
            raise ValueError(_missing_sentence(name, parameter.name, columns))


def _check_accepts(name: str, parameters: list[Parameter], arguments: frozenset[str]) -> None:
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        return
    refused = arguments - {parameter.name for parameter in parameters if parameter.kind in _NAMED}
    if refused:
        raise ValueError(
            f"Reward function {name!r} does not accept {_listed(refused)}, which TRL passes to every reward function; "
            "add **kwargs to its arguments."
        )


def check_reward_columns(func: Callable[..., Any], columns: Iterable[str], passed_too: Iterable[str] = ()) -> None:
    """Check that TRL can call `func` on a dataset with these columns.

    TRL calls `func(prompts=, completions=, completion_ids=, trainer_state=, <every dataset column>=)`, without the
    columns `prompt` and `completion`; TRL >= 1.0 adds `log_extra=` and `log_metric=`. The check reads the signature,
    through wrappers that set `__wrapped__`; a callable without a readable signature passes.

    Args:
        func: a reward function.
        columns: the dataset's column names.
        passed_too: keywords that the trainer at hand passes besides, to functions that take them; none by default.

    Raises:
        ValueError: `func` needs an argument that is neither a column nor one of TRL's own; or it has no `**kwargs`
            and does not accept everything that TRL passes; or a column has the name of one of TRL's own arguments.
    """
    name = getattr(func, "__name__", type(func).__name__)
    always, sometimes = reward_keywords()
    names = frozenset(columns)
    clashes = names & TRL_KEYWORDS - set(_NOT_PASSED)
    if clashes:
        raise ValueError(
            f"Dataset column {_listed(clashes)} has the name of an argument that TRL itself passes to reward "
            "functions; rename the column."
        )
    passed_columns = names - set(_NOT_PASSED)
    try:
        parameters = list(inspect.signature(func).parameters.values())
    except (TypeError, ValueError):
        return
    _check_required(name, parameters, passed_columns, always | sometimes | frozenset(passed_too))
    _check_accepts(name, parameters, passed_columns | always)

"""Signatures that rewards show to `check_reward_columns`, which reads there what data a reward needs."""

import inspect
import keyword
from collections.abc import Callable, Iterable
from contextlib import suppress
from inspect import Parameter
from typing import Any

_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
_BY_TRL = ("prompts", "completions", "completion_ids")


def required_signature(required: Iterable[str], accepted: Iterable[str] | None = None) -> inspect.Signature:
    """TRL's arguments and the required columns.

    Args:
        required: the columns that every call needs. Names that no argument can have are left out.
        accepted: the further arguments that a call may have; None (default): any.
    """
    possible = [name for name in required if name.isidentifier() and not keyword.iskeyword(name)]
    named = [name for name in dict.fromkeys(possible) if name not in _BY_TRL]
    optional = sorted(set(accepted or ()) - {*named, *_BY_TRL})
    rest = [Parameter("columns", Parameter.VAR_KEYWORD)] if accepted is None else []
    return inspect.Signature(
        [
            Parameter("prompts", Parameter.POSITIONAL_OR_KEYWORD),
            Parameter("completions", Parameter.POSITIONAL_OR_KEYWORD),
            Parameter("completion_ids", Parameter.POSITIONAL_OR_KEYWORD, default=None),
            *(Parameter(name, Parameter.KEYWORD_ONLY) for name in named),
            *(Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in optional),
            *rest,
        ]
    )


def plain_signature(func: Callable[..., Any]) -> inspect.Signature:
    """Return the function's signature without annotations, and with None for defaults: those may defy pickling.

    Raises:
        TypeError, ValueError: it has no readable signature.
    """
    signature = inspect.signature(func)
    parameters = [
        parameter.replace(
            annotation=Parameter.empty, default=Parameter.empty if parameter.default is Parameter.empty else None
        )
        for parameter in signature.parameters.values()
    ]
    return signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)


def joint_signature(rewards: Iterable[Callable[..., Any]], columns: Iterable[str] = ()) -> inspect.Signature:
    """Return what rewards that are called with the same arguments need together, and what all of them accept.

    Args:
        rewards: reward functions of TRL's convention; one without a readable signature asks for nothing.
        columns: further columns that every call needs.
    """
    required, accepted = list(columns), None
    for reward in rewards:
        with suppress(TypeError, ValueError):
            parameters = inspect.signature(reward).parameters.values()
            required += [p.name for p in parameters if p.kind in _NAMED and p.default is Parameter.empty]
            if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
                named = {p.name for p in parameters if p.kind in _NAMED}
                accepted = named if accepted is None else accepted & named
    return required_signature(required, accepted)

"""The trainer that a callback is given to: checked, its methods wrapped and given back. Standard library only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from trl_grpo_ext._compat import prompt_limit
from trl_grpo_ext.experience.rollout_rows import check_columns

GENERATE, REWARD = "_generate_and_score_completions", "_calculate_rewards"
# Marks a wrapped method, through the wrappers of others too: `functools.wraps` copies it.
_MARK = "_experience_wrapping"


class Wrapping:
    """A method of one trainer that a function stands in for, until `undo`.

    Args:
        trainer: the trainer.
        name: of the method.
        around: called in its place, with the original method before the arguments.
    """

    def __init__(self, trainer: Any, name: str, around: Callable[..., Any]) -> None:
        self.is_active = True
        self._trainer, self._name = trainer, name
        self._before = vars(trainer).get(name)
        original = getattr(trainer, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs) if self.is_active else original(*args, **kwargs)

        setattr(wrapped, _MARK, self)
        setattr(trainer, name, wrapped)
        self._wrapped = wrapped

    def undo(self) -> None:
        """Give the trainer its method back; where somebody wrapped it after us, only step aside."""
        self.is_active = False
        if vars(self._trainer).get(self._name) is not self._wrapped:
            return
        if self._before is None:
            delattr(self._trainer, self._name)
        else:
            setattr(self._trainer, self._name, self._before)


def is_wrapped(trainer: Any, name: str) -> bool:
    """Return whether a method of a trainer is wrapped by a `Wrapping` that was not undone."""
    wrapping = getattr(getattr(trainer, name), _MARK, None)
    return wrapping is not None and wrapping.is_active


def check_trainer(trainer: Any, token_budget: int | None, metadata_columns: Sequence[str]) -> None:
    """Refuse a trainer that experiences can't be put into.

    Raises:
        TypeError: not a GRPO trainer.
        ValueError: a second ExperienceCallback, environments, a budget that leaves no room for the prompt, or see
            `check_columns`.
    """
    missing = [name for name in (GENERATE, REWARD) if not hasattr(trainer, name)]
    if missing:
        raise TypeError(f"ExperienceCallback needs a GRPOTrainer; {type(trainer).__name__} has no {missing[0]!r}.")
    if is_wrapped(trainer, GENERATE):
        raise ValueError("this trainer has an ExperienceCallback already; give it one, with one library.")
    if getattr(trainer, "environment_factories", None) is not None:
        raise ValueError(
            "ExperienceCallback does not work with environment_factory: environments add their own text to the "
            "prompts, which rewards would not see."
        )
    limit = prompt_limit(trainer)
    if limit is not None and token_budget is not None and token_budget >= limit:
        raise ValueError(
            f"token_budget={token_budget} leaves no room for a prompt: TRL cuts prompts to max_prompt_length={limit} "
            "tokens, from the left. Set max_prompt_length=None, or a smaller budget."
        )
    columns = getattr(getattr(trainer, "train_dataset", None), "column_names", None) or ()
    check_columns(columns, metadata_columns)

"""Negative controls: does training still "improve" when the reward says nothing about the row?"""

import inspect
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

from trl_grpo_ext._suggest import did_you_mean

CONTROLS = ("none", "random", "shuffled")


class _RewardControl:
    """Shows the name and signature of the wrapped reward function, and owns a generator.

    The generator is seeded by (`seed`, the function's name, the RANK of this process), so that ranks differ and no
    other random state is read or changed.
    """

    def __init__(self, func: Callable[..., Any], seed: int) -> None:
        self.__name__ = func.__name__
        self.__doc__ = func.__doc__
        # inspect.signature follows __wrapped__, so check_reward_columns sees the function's own arguments.
        self.__wrapped__ = func
        self._generator = random.Random(f"{seed}|{func.__name__}|{os.environ.get('RANK', '0')}")


class RandomReward(_RewardControl):
    """Draws each reward from the uniform distribution on [0, 1); the wrapped function is never called."""

    def __call__(self, completions: Sequence[Any], *args: Any, **kwargs: Any) -> list[float]:
        return [self._generator.random() for _ in completions]


class ShuffledReward(_RewardControl):
    """Gives the wrapped function's rewards to the rows of the same call in random order. Mean and spread stay."""

    def _permute(self, rewards: Sequence[Any]) -> list[Any]:
        return self._generator.sample(list(rewards), len(rewards))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._permute(self.__wrapped__(*args, **kwargs))


class AsyncShuffledReward(ShuffledReward):
    """`ShuffledReward` of an `async def` reward function (TRL >= 0.27 awaits those)."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._permute(await self.__wrapped__(*args, **kwargs))


def _is_async(func: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(type(func).__call__)


def _shuffled(func: Callable[..., Any], seed: int) -> ShuffledReward:
    return AsyncShuffledReward(func, seed) if _is_async(func) else ShuffledReward(func, seed)


def apply_reward_control(funcs: Sequence[Callable[..., Any]], control: str, seed: int = 0) -> list[Callable[..., Any]]:
    """Replace rewards by a negative control of the same names and signatures.

    Args:
        funcs: reward functions, each with a `__name__`.
        control: "none" returns the functions themselves; "random" draws uniformly from [0, 1) in place of the reward;
            "shuffled" permutes the true rewards among the rows of each call. One call holds the completions of one
            process, so a call of a single row stays as it is.
        seed: seed of the controls' own generators; 0 by default. Each also depends on the function's name and on the
            environment variable RANK.

    Returns:
        One function per function given. Control objects can be pickled where their function can.

    Raises:
        ValueError: `control` is none of the three.
    """
    if control not in CONTROLS:
        raise ValueError(
            f"reward control must be one of {', '.join(CONTROLS)}, not {control!r}{did_you_mean(control, CONTROLS) or '.'}"
        )
    if control == "none":
        return list(funcs)
    return [RandomReward(func, seed) if control == "random" else _shuffled(func, seed) for func in funcs]

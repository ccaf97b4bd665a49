"""Negative controls: does training still "improve" when the reward says nothing about the row?"""

import inspect
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from trl_grpo_ext._suggest import did_you_mean

CONTROLS = ("none", "random", "shuffled")


class _RewardControl(ABC):
    """Shows the name and signature of the wrapped reward function, calls it, and owns a generator.

    The generator is seeded by (`seed`, the function's name, the RANK of this process), so that ranks differ and no
    other random state is read or changed.
    """

    def __init__(self, func: Callable[..., Any], seed: int) -> None:
        self.__name__ = func.__name__
        self.__doc__ = func.__doc__
        # inspect.signature follows __wrapped__, so check_reward_columns sees the function's own arguments.
        self.__wrapped__ = func
        self._generator = random.Random(f"{seed}|{func.__name__}|{os.environ.get('RANK', '0')}")

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator, which a checkpoint keeps."""
        return {"generator": self._generator.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self._generator.setstate(state["generator"])

    @abstractmethod
    def _replace(self, rewards: Sequence[Any]) -> list[Any]:
        """The control's rewards for the true ones of a call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._replace(self.__wrapped__(*args, **kwargs))


class RandomReward(_RewardControl):
    """Draws each reward, with replacement, from the true rewards of the same call: r'_i = r_J, J uniform over the rows.

    Given the true rewards r of the call, each r'_i has their mean and their variance, whatever the row: E[r'_i] =
    mean(r), Var[r'_i] = var(r), and Cov(r'_i, r_i) = 0 over the rows. A None is drawn as often as it occurs.
    """

    def _replace(self, rewards: Sequence[Any]) -> list[Any]:
        pool = list(rewards)
        return self._generator.choices(pool, k=len(pool)) if pool else []


class ShuffledReward(_RewardControl):
    """Gives the wrapped function's rewards to the rows of the same call in random order, across groups.

    Mean, spread and every other statistic of the call stay exactly; the expected covariance with the true rewards is 0.
    """

    def _replace(self, rewards: Sequence[Any]) -> list[Any]:
        pool = list(rewards)
        return self._generator.sample(pool, len(pool))


class _AsyncControl(_RewardControl):
    """The control of an `async def` reward function (TRL >= 0.27 awaits those)."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._replace(await self.__wrapped__(*args, **kwargs))


class AsyncRandomReward(_AsyncControl, RandomReward):
    """`RandomReward` of an `async def` reward function."""


class AsyncShuffledReward(_AsyncControl, ShuffledReward):
    """`ShuffledReward` of an `async def` reward function."""


_CLASSES: dict[tuple[str, bool], Callable[[Callable[..., Any], int], _RewardControl]] = {
    ("random", False): RandomReward,
    ("random", True): AsyncRandomReward,
    ("shuffled", False): ShuffledReward,
    ("shuffled", True): AsyncShuffledReward,
}


def _is_async(func: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(type(func).__call__)


def apply_reward_control(funcs: Sequence[Callable[..., Any]], control: str, seed: int = 0) -> list[Callable[..., Any]]:
    """Replace rewards by a negative control of the same names, signatures and spread.

    Both controls call the true function, so that time, errors and logged details stay, and both hand out rewards of
    the same call: a model that "improves" under either does so for another reason than the reward.

    Args:
        funcs: reward functions, each with a `__name__`.
        control: "none" returns the functions themselves; "random" draws each reward with replacement from the true
            rewards of the call (their mean and spread in expectation); "shuffled" permutes the true rewards among the
            rows of the call (their mean and spread exactly). Both go across groups, so that neither the completion nor
            the prompt decides. One call holds the completions of one process; a call of a single row stays as it is.
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
    return [_CLASSES[control, _is_async(func)](func, seed) for func in funcs]

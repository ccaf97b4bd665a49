"""What the arguments of an isolated reward may be."""

import inspect
import math
from typing import Any, Literal

from trl_grpo_ext.rewards.runtime.functions import RewardFunction

Policy = Literal["raise", "skip"] | float


def check_policy(argument: str, policy: Any) -> None:
    """Raise ValueError unless the policy is "raise", "skip" or a finite number."""
    number = isinstance(policy, (int, float)) and not isinstance(policy, bool) and math.isfinite(policy)
    if policy not in ("raise", "skip") and not number:
        raise ValueError(f"IsolatedReward: {argument} must be 'raise', 'skip' or a finite number, not {policy!r}.")


def check_deadline(deadline: float | None) -> None:
    """Raise ValueError unless the deadline is None or a positive number of seconds."""
    if deadline is not None and not 0 < deadline < math.inf:
        raise ValueError(f"IsolatedReward: deadline must be a positive number of seconds, not {deadline!r}.")


def name_of(func: RewardFunction | str, name: str | None) -> str:
    """Return the name of a function that runs in the trainer; ValueError for one without, or an async one."""
    found = name or getattr(func, "__name__", None)
    if not isinstance(found, str):
        raise ValueError(f"IsolatedReward: {func!r} has no __name__, under which it is logged; give name='...'.")
    if inspect.iscoroutinefunction(func):
        raise ValueError(f"IsolatedReward: {found!r} is async; in_process=True takes a plain function.")
    return found

"""Math answers that need algebra: decided by math-verify, in worker processes that a deadline kills."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trl_grpo_ext.rewards.math_answers import MathEqual, symbolic_equal
from trl_grpo_ext.rewards.runtime import IsolatedReward

DEADLINE_SECONDS = 5.0


def symbolic_match(completions: Sequence[str], gold: Sequence[str], **kwargs: Any) -> list[float]:
    """`symbolic_equal` per row, in a reward's convention: what runs in the workers."""
    return [float(symbolic_equal(truth, answer)) for truth, answer in zip(gold, completions, strict=True)]


@dataclass(frozen=True)
class SymbolicWorkers:
    """A list of (gold, answer) -> True, False, or None for a pair whose comparison ran into the deadline or a limit.

    Args:
        deadline: seconds per pair; its worker is killed then and replaced.

    Raises:
        ValueError: math-verify is not installed.
    """

    deadline: float = DEADLINE_SECONDS
    _reward: IsolatedReward = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError(
                "math_verified needs math-verify: install `math-verify>=0.8` (the extra `math`), or use math_equal, which "
                "compares numbers, fractions, intervals and sets without it."
            )
        reward = IsolatedReward(symbolic_match, imports=["math_verify"], deadline=self.deadline)
        object.__setattr__(self, "_reward", reward)

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        golds, answers = [gold for gold, _ in pairs], [answer for _, answer in pairs]
        rewards = self._reward(prompts=[""] * len(pairs), completions=answers, completion_ids=None, gold=golds)
        return [None if reward is None else bool(reward) for reward in rewards]


def math_verified() -> MathEqual:
    """`MathEqual` whose undecided pairs go to math-verify in workers; a pair that can't be judged in time is skipped."""
    return MathEqual(symbolic=SymbolicWorkers(), name="math_verified")

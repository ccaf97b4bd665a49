"""Which dead groups get hints, and when. Pure functions; standard library only."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MODES = ("on_policy_hinted", "off_policy")

# Rewards of float32 that differ by rounding only are equal.
_EQUAL = 1e-6


def prompt_key(prompt: Any) -> str:
    """Return 16 hexadecimal digits that stand for a prompt, a text or messages."""
    return hashlib.sha256(repr(prompt).encode("utf-8", "replace")).hexdigest()[:16]


def uniform(seed: int, key: str, count: int) -> float:
    """Return a number in [0, 1) that is a hash of its arguments: the same on every rank and after a resume."""
    digest = hashlib.sha256(f"{seed}/{key}/{count}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hint_probability(progress: float, anneal: float | None) -> float:
    """Return p = max(0, 1 - progress / anneal), or 1 without annealing.

    Args:
        progress: share of the training that is done, in [0, 1].
        anneal: share of the training after which there are no hints any more.
    """
    return 1.0 if anneal is None else max(0.0, 1.0 - progress / anneal)


@dataclass(frozen=True)
class RescueRule:
    """When a prompt is due: its group was dead and low at `visits` visits in a row, and chance says yes.

    A visit at which the rewards differ, or are equal and above `reward_at_most`, sets the count of its prompt back to
    0; one at which a completion has no reward says nothing and leaves it. From the `visits`-th low visit on, every one
    is due with `hint_probability`.

    Args:
        visits: least number of low visits in a row, the present one among them.
        reward_at_most: highest reward that counts as low.
        anneal: see `hint_probability`.
        seed: of the chance.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument outside its range.
    """

    visits: int = 2
    reward_at_most: float = 0.0
    anneal: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("visits", self.visits, 1)
        check_whole("seed", self.seed, 0)
        if not _is_number(self.reward_at_most):
            raise ValueError(f"reward_at_most must be a finite number, not {self.reward_at_most!r}.")
        if self.anneal is not None and not (_is_number(self.anneal) and 0.0 < self.anneal <= 1.0):
            raise ValueError(
                f"anneal is the share of the training after which hints end, above 0 and at most 1, or None; not "
                f"{self.anneal!r}."
            )

    def due(
        self, counts: Mapping[str, int], keys: Sequence[str], rewards: Sequence[float | None], progress: float
    ) -> tuple[list[int], dict[str, int]]:
        """Return the groups that are due, and the counts after this visit.

        Args:
            counts: low visits in a row by prompt; prompts without any are not in it.
            keys: of the groups' prompts; a prompt that comes twice is visited twice.
            rewards: of the groups: the one reward of all completions, None where they differ, NaN where one has none.
            progress: share of the training that is done.
        """
        found, after = [], dict(counts)
        chance = hint_probability(progress, self.anneal)
        for group, (key, reward) in enumerate(zip(keys, rewards, strict=True)):
            if reward is not None and math.isnan(reward):
                continue
            if reward is None or reward > self.reward_at_most + _EQUAL:
                after.pop(key, None)
                continue
            after[key] = after.get(key, 0) + 1
            if after[key] >= self.visits and uniform(self.seed, key, after[key]) < chance:
                found.append(group)
        return found, after


def check_whole(name: str, value: Any, least: int) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises:
        TypeError: no whole number.
        ValueError: too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

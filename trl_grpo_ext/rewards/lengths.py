"""Rewards of a completion's length and repetition, counted in tokens. They need the argument `completion_ids`."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trl_grpo_ext.rewards.named import NamedReward, check_count, check_finite
from trl_grpo_ext.rewards.text import Completion


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


@dataclass(frozen=True, kw_only=True)
class SoftOverlong(NamedReward):
    """The soft punishment of overlong completions, Eq. 13 of DAPO (arXiv 2503.14476). Range [-1, 0].

    With |y| the number of tokens: 0 if |y| <= max_length - cache_length; -1 if |y| > max_length; in between
    ((max_length - cache_length) - |y|) / cache_length. Equal to TRL's `get_soft_overlong_punishment`.

    Failure modes: with `max_length` at or above the trainer's `max_completion_length` plus one, -1 is never reached;
    with `mask_truncated_completions` the longest completions carry no loss, whatever their reward.

    Args:
        max_length: L_max in tokens; usually the trainer's `max_completion_length`.
        cache_length: L_cache, the length of the slope in tokens; 0 for a step at `max_length`.
        name: `__name__`, under which TRL logs the reward.

    Raises:
        ValueError: `max_length` is not at least 1, or `cache_length` is not from 0 to `max_length`.
    """

    max_length: int
    cache_length: int
    name: str = "soft_overlong"

    def __post_init__(self) -> None:
        check_count("SoftOverlong", "max_length", self.max_length, at_least=1)
        check_count("SoftOverlong", "cache_length", self.cache_length, at_least=0)
        if self.cache_length > self.max_length:
            raise ValueError(
                f"SoftOverlong: cache_length must not exceed max_length ({self.max_length}), not {self.cache_length}."
            )

    def _reward(self, length: int) -> float:
        free = self.max_length - self.cache_length
        if length <= free:
            return 0.0
        return -1.0 if length > self.max_length else (free - length) / self.cache_length

    def __call__(self, completion_ids: Sequence[Sequence[int]], **kwargs: Any) -> list[float]:
        """Return one reward per completion; see the class."""
        return [self._reward(len(ids)) for ids in completion_ids]


@dataclass(frozen=True, kw_only=True)
class CosineLength(NamedReward):
    """Correctness scaled by length along a cosine, Appendix C.1 of "Demystifying Long CoT" (arXiv 2502.03373).

    With t = min(|y| / max_length, 1), |y| in tokens: end + (start - end) / 2 * (1 + cos(pi * t)), where (start, end)
    is (max_value_correct, min_value_correct) for a correct completion and (min_value_wrong, max_value_wrong) for a
    wrong one: a short correct answer earns most, a short wrong one loses most. Range: from the smallest to the largest
    of the five values. The values' names and defaults are those of open-r1 and of TRL's `get_cosine_scaled_reward`;
    the paper trained with 2, 1 (correct), -10, 0 (wrong) and -10 (exceeded).

    Failure modes: with wrong values that rise to nearly the correct ones, padding a wrong answer pays; combine it
    with `RepetitionPenalty`, as the paper does. None where `correctness` gives None.

    Args:
        correctness: a reward function that is not async; a completion is correct when its reward is at least
            `threshold`. It gets every argument that TRL passes.
        max_length: the length in tokens at which the cosine ends.
        min_value_wrong: reward of a wrong completion of length 0; -1.0 by default.
        max_value_wrong: reward of a wrong completion of `max_length`; -0.5 by default.
        min_value_correct: reward of a correct completion of `max_length`; 0.5 by default.
        max_value_correct: reward of a correct completion of length 0; 1.0 by default.
        exceeded: reward of any completion of `max_length` tokens or more, the paper's r_e; None (default) for none.
        threshold: 0.5 by default.
        name: `__name__`, under which TRL logs the reward.

    Raises:
        ValueError: `correctness` is not callable or is async, `max_length` is not at least 1, or a value is not
            finite.
    """

    correctness: Callable[..., Sequence[float | None]]
    max_length: int
    min_value_wrong: float = -1.0
    max_value_wrong: float = -0.5
    min_value_correct: float = 0.5
    max_value_correct: float = 1.0
    exceeded: float | None = None
    threshold: float = 0.5
    name: str = "cosine_length"

    def __post_init__(self) -> None:
        check_count("CosineLength", "max_length", self.max_length, at_least=1)
        for argument in ("min_value_wrong", "max_value_wrong", "min_value_correct", "max_value_correct", "threshold"):
            check_finite("CosineLength", argument, getattr(self, argument))
        if self.exceeded is not None:
            check_finite("CosineLength", "exceeded", self.exceeded)
        if not callable(self.correctness) or _is_async(self.correctness):
            raise ValueError(
                f"CosineLength: correctness must be a reward function without async, such as gsm8k_number, not "
                f"{self.correctness!r}."
            )

    @property
    def __wrapped__(self) -> Callable[..., Sequence[float | None]]:
        # inspect.signature follows it, so check_reward_columns sees the columns that `correctness` needs.
        return self.correctness

    def _scaled(self, correct: float | None, length: int) -> float | None:
        if correct is None:
            return None
        if self.exceeded is not None and length >= self.max_length:
            return float(self.exceeded)
        start, end = self.min_value_wrong, self.max_value_wrong
        if correct >= self.threshold:
            start, end = self.max_value_correct, self.min_value_correct
        progress = min(length / self.max_length, 1.0)
        return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))

    def __call__(
        self, completions: Sequence[Completion], completion_ids: Sequence[Sequence[int]], **kwargs: Any
    ) -> list[float | None]:
        """Return one reward per completion; see the class."""
        correct = self.correctness(completions=completions, completion_ids=completion_ids, **kwargs)
        return [self._scaled(value, len(ids)) for value, ids in zip(correct, completion_ids, strict=True)]


@dataclass(frozen=True, kw_only=True)
class RepetitionPenalty(NamedReward):
    """max_penalty * (1 - unique n-grams / all n-grams) of the completion's tokens (arXiv 2502.03373, Appendix C.2).

    Range [max_penalty, 0]; 0 for fewer than `ngram_size` tokens. Equal to TRL's `get_repetition_penalty_reward`.
    Failure modes: honest repetition counts too (tables, code, restated formulas), and the share of repeated n-grams
    grows with length by itself, so it is also a mild length penalty.

    Args:
        ngram_size: tokens per n-gram; 3 by default.
        max_penalty: the limit for a fully repetitive completion; -1.0 by default.
        name: `__name__`, under which TRL logs the reward.

    Raises:
        ValueError: `ngram_size` is not at least 1, or `max_penalty` is positive or not finite.
    """

    ngram_size: int = 3
    max_penalty: float = -1.0
    name: str = "repetition_penalty"

    def __post_init__(self) -> None:
        check_count("RepetitionPenalty", "ngram_size", self.ngram_size, at_least=1)
        check_finite("RepetitionPenalty", "max_penalty", self.max_penalty)
        if self.max_penalty > 0:
            raise ValueError(f"RepetitionPenalty: max_penalty must not be positive, not {self.max_penalty!r}.")

    def _reward(self, ids: Sequence[int]) -> float:
        ngrams = [tuple(ids[start : start + self.ngram_size]) for start in range(len(ids) - self.ngram_size + 1)]
        repeated = 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
        return repeated * self.max_penalty if repeated else 0.0

    def __call__(self, completion_ids: Sequence[Sequence[int]], **kwargs: Any) -> list[float]:
        """Return one reward per completion; see the class."""
        return [self._reward(ids) for ids in completion_ids]


repetition_penalty = RepetitionPenalty()

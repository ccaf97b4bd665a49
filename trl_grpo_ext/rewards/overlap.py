"""Likeness to a reference text: ROUGE-L."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trl_grpo_ext.rewards.named import NamedReward, check_count
from trl_grpo_ext.rewards.text import Completion, completion_text, ground_truth_texts, words


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two sequences of words.

    Bit-parallel (Hyyrö 2004): one addition and three logical operations on a len(first)-bit number per word of
    `second`.
    """
    places: dict[str, int] = {}
    for position, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << position
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(first) - row.bit_count()


@dataclass(frozen=True, kw_only=True)
class RougeL(NamedReward):
    """ROUGE-L F1 of completion and solution: 2 * LCS / (m + n), Lin 2004. Range [0, 1].

    LCS is the length of their longest common subsequence of words, m and n their numbers of words. Words are runs of
    letters, digits and underscores without regard to case; each Chinese or Japanese character is a word. 0 when
    neither has a word. No stemming.

    Failure modes: wording is rewarded, not truth: one "not" changes it little, a paraphrase scores low, and copying the
    prompt can score high. Use it as a shaping term of small weight.

    Args:
        max_words: both texts are cut to this many words, which bounds the time; 4,096 by default.
        name: `__name__`, under which TRL logs the reward.

    Raises:
        ValueError: `max_words` is not at least 1; when called: a solution is None or NaN.
    """

    max_words: int = 4096
    name: str = "rouge_l"

    def __post_init__(self) -> None:
        check_count("RougeL", "max_words", self.max_words, at_least=1)

    def _score(self, text: str, gold: str) -> float:
        first, second = (words(part)[: self.max_words] for part in (text, gold))
        total = len(first) + len(second)
        return 2 * lcs_length(first, second) / total if total else 0.0

    def __call__(self, completions: Sequence[Completion], solution: Sequence[Any], **kwargs: Any) -> list[float]:
        """Return one reward per completion; see the class."""
        golds = ground_truth_texts("solution", solution, len(completions))
        return [
            self._score(completion_text(completion), gold) for completion, gold in zip(completions, golds, strict=True)
        ]


rouge_l = RougeL()

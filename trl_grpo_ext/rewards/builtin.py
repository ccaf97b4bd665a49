"""The built-in reward functions, in TRL's calling convention: `f(completions, <column>, **kwargs) -> list[float]`."""

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from trl_grpo_ext.rewards.numbers import final_number
from trl_grpo_ext.rewards.text import Completion, completion_text, equal_texts, ground_truth_texts, words


def _normalise_whitespace(text: str) -> str:
    return " ".join(text.split())


def exact_match(completions: Sequence[Completion], solution: Sequence[Any], **kwargs: Any) -> list[float]:
    """1.0 where the completion equals the solution after stripping and joining runs of whitespace, else 0.0.

    Args:
        completions: one string or message list per row.
        solution: the ground truth of each row; numbers are written out (`18` equals "18", not "18.0").
        kwargs: the other columns, unused.

    Returns:
        One reward per completion.

    Raises:
        ValueError: a solution is None or NaN.
    """
    return equal_texts(completions, solution, _normalise_whitespace)


def _gold_number(row: int, gold: str) -> Decimal:
    number = final_number(gold)
    if number is None:
        raise ValueError(
            f"Column 'solution' holds no number in row {row} of this reward call ({gold[-80:]!r}); gsm8k_number needs "
            "one, such as '#### 18': drop the row, or reward it with exact_match."
        )
    return number


def gsm8k_number(completions: Sequence[Completion], solution: Sequence[Any], **kwargs: Any) -> list[float]:
    r"""1.0 where the completion's final number equals the solution's final number, else 0.0.

    The final number is the one after the last `####`, else the last one in the last `\boxed{...}`, else the last one
    of the text; `18`, `18.00`, `$18` and `18%` are equal, and `1,800` is 1800. The time is linear in the text.

    Args:
        completions: one string or message list per row.
        solution: the ground truth of each row: a GSM8K answer (`... #### 18`), a text, or a number.
        kwargs: the other columns, unused.

    Returns:
        One reward per completion; 0.0 for a completion without a number, or with one of more than 64 digits.

    Raises:
        ValueError: a solution is None or NaN, or holds no such number.
    """
    golds = ground_truth_texts("solution", solution, len(completions))
    numbers = [_gold_number(row, gold) for row, gold in enumerate(golds)]
    return [
        float(final_number(completion_text(completion)) == number)
        for completion, number in zip(completions, numbers, strict=True)
    ]


def _unigram_f1(first: Counter[str], second: Counter[str]) -> float:
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 0.0


def preference_overlap(
    completions: Sequence[Completion], chosen: Sequence[Any], rejected: Sequence[Any], **kwargs: Any
) -> list[float]:
    """Likeness to the chosen answer minus likeness to the rejected one, in [-1, 1].

    reward = F1(completion, chosen) - F1(completion, rejected), where F1 is ROUGE-1 F1 over the multisets of words:
    F1(a, b) = 2 * sum_w min(a_w, b_w) / (sum_w a_w + sum_w b_w), and 0 when neither has a word. Words are runs of
    letters, digits and underscores without regard to case; each Chinese or Japanese character is a word.

    Args:
        completions: one string or message list per row.
        chosen: the preferred answer of each row, a string or message list.
        rejected: the other answer of each row.
        kwargs: the other columns, unused.

    Returns:
        One reward per completion.

    Raises:
        ValueError: a chosen or rejected answer is None or NaN.
    """
    spoken = [Counter(words(completion_text(completion))) for completion in completions]
    likeness = [
        [_unigram_f1(own, Counter(words(gold))) for own, gold in zip(spoken, golds, strict=True)]
        for golds in (
            ground_truth_texts("chosen", chosen, len(spoken)),
            ground_truth_texts("rejected", rejected, len(spoken)),
        )
    ]
    return [to_chosen - to_rejected for to_chosen, to_rejected in zip(*likeness, strict=True)]

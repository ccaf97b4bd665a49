"""Countdown and the game of 24, computed by `evaluate_arithmetic`: nothing that the model wrote is executed."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from trl_grpo_ext.rewards.arithmetic import evaluate_arithmetic
from trl_grpo_ext.rewards.extraction import last_answer_line, last_boxed, last_tagged
from trl_grpo_ext.rewards.text import Completion, completion_text


def _expression(text: str) -> str:
    """Return what stands in the last `<answer>`, the last box, after the last "Answer:", or in the last line."""
    for found in (last_tagged(text, "answer"), last_boxed(text), last_answer_line(text)):
        if found is not None:
            return found.strip(" \t\n$`*")
    return text.rstrip().rpartition("\n")[2].strip(" \t$`")


def _solves(text: str, numbers: Sequence[int], target: Fraction) -> bool:
    left, equals, right = _expression(text).partition("=")
    result = evaluate_arithmetic(left)
    if result is None or result[0] != target or sorted(result[1]) != sorted(numbers):
        return False
    claimed = evaluate_arithmetic(right) if equals else None
    return not equals or (claimed is not None and claimed[0] == target)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_row(row: int, numbers: Any, target: Any) -> None:
    listed = isinstance(numbers, Sequence) and not isinstance(numbers, str)
    if not listed or not numbers or not all(map(_is_whole, numbers)):
        raise ValueError(
            f"Column 'nums' must hold a list of whole numbers in row {row} of this reward call, not {numbers!r}; "
            "drop the row, or convert the column."
        )
    if not _is_whole(target):
        raise ValueError(
            f"Column 'target' must hold a whole number in row {row} of this reward call, not {target!r}; drop the "
            "row, or convert the column."
        )


def countdown(
    completions: Sequence[Completion], nums: Sequence[Sequence[int]], target: Sequence[int], **kwargs: Any
) -> list[float]:
    r"""1.0 where the completion's expression uses every given number exactly once and gives the target, else 0.0.

    The expression is what stands in the last `<answer>...</answer>`, else in the last `\boxed{...}`, else after the
    last "Answer:", else in the last line; "= target" may follow it. Allowed are whole numbers, + - * /, a leading
    minus and parentheses; values are exact fractions. Columns as in Jiayi-Pan/Countdown-Tasks-3to4. Range {0, 1}.

    Failure modes: powers, decimals, factorials and concatenation are refused although some players allow them;
    a correct expression anywhere else in the text doesn't count.

    Args:
        completions: one string or message list per row.
        nums: the given numbers of each row.
        target: the number to reach, per row.
        kwargs: the other columns, unused.

    Raises:
        ValueError: a row has no list of whole numbers, or no whole target; or a column has another length.
    """
    for column, values in (("nums", nums), ("target", target)):
        if len(values) != len(completions):
            raise ValueError(
                f"Column {column!r} must hold one value per completion ({len(completions)}), not {len(values)}."
            )
    for row, (numbers, goal) in enumerate(zip(nums, target, strict=True)):
        _check_row(row, numbers, goal)
    return [
        float(_solves(completion_text(completion), numbers, Fraction(goal)))
        for completion, numbers, goal in zip(completions, nums, target, strict=True)
    ]


def game_of_24(completions: Sequence[Completion], nums: Sequence[Sequence[int]], **kwargs: Any) -> list[float]:
    """`countdown` with the target 24: 1.0 where every given number is used exactly once to make 24, else 0.0.

    Args:
        completions: one string or message list per row.
        nums: the given numbers of each row.
        kwargs: the other columns, unused.

    Raises:
        ValueError: a row has no list of whole numbers, or the column has another length.
    """
    return countdown(completions, nums=nums, target=[24] * len(completions))

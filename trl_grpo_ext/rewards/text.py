"""Text of completions and of ground truth, as plain strings."""

import re
from collections.abc import Callable, Sequence
from typing import Any

Message = dict[str, Any]
Completion = str | list[Message]

# Chinese and Japanese are written without spaces: there, each character counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """Return the words of a text without regard to case: runs of letters, digits and underscores, in their order.

    Each Chinese or Japanese character is a word.
    """
    return _WORD.findall(text.casefold())


def _content_text(content: Any) -> str:
    """Return a message's content as a string: itself, the joined text blocks, or "" for a message without text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(block.get("text") or "" for block in content if block.get("type") == "text")


def completion_text(completion: Completion) -> str:
    """Return the text of a completion in either of TRL's two forms.

    Args:
        completion: a string, or a list of messages. Of several messages (tool use), the last assistant message
            counts; without one, or when it holds no text, the result is "".

    Raises:
        TypeError: another type.
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, list):
        raise TypeError(
            f"A completion must be a string or a list of messages, not {type(completion).__name__}; "
            'a message is {"role": "assistant", "content": "..."}.'
        )
    answers = [message for message in completion if message.get("role") == "assistant"]
    return _content_text(answers[-1].get("content")) if answers else ""


def _is_missing(value: Any) -> bool:
    # NaN is what a missing cell becomes on its way through pandas.
    return value is None or (isinstance(value, float) and value != value)


def ground_truth_texts(column: str, values: Sequence[Any], rows: int) -> list[str]:
    """Return a ground-truth column as strings; numbers are written out, message lists give their last answer.

    Args:
        column: the column's name, for the messages.
        values: one ground truth per row.
        rows: the number of completions.

    Raises:
        ValueError: a row is None or NaN, or there is not one value per completion.
    """
    if isinstance(values, str) or len(values) != rows:
        raise ValueError(
            f"Column {column!r} must hold one ground truth per completion ({rows}), not "
            f"{'one string' if isinstance(values, str) else len(values)}."
        )
    for row, value in enumerate(values):
        if _is_missing(value):
            raise ValueError(
                f"Column {column!r} is {value} in row {row} of this reward call, so that row can't be scored; "
                f"drop the rows without {column!r} from the dataset, or fill them."
            )
    return [completion_text(value) if isinstance(value, (str, list)) else str(value) for value in values]


def equal_texts(completions: Sequence[Completion], solution: Sequence[Any], form: Callable[[str], str]) -> list[float]:
    """Return 1.0 per row where `form` of the completion's text is that of the solution's, else 0.0.

    Raises:
        ValueError: a solution is None or NaN, or there is not one per completion.
    """
    golds = ground_truth_texts("solution", solution, len(completions))
    return [
        float(form(completion_text(completion)) == form(gold))
        for completion, gold in zip(completions, golds, strict=True)
    ]

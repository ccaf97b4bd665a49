"""The answer that a completion votes for, refusals, and classes of equal answers. Nothing is evaluated."""

import re
from collections.abc import Callable, Sequence
from decimal import Context, Decimal

from trl_grpo_ext.rewards.extraction import last_answer_line, last_boxed
from trl_grpo_ext.rewards.matching import normalise_answer
from trl_grpo_ext.rewards.numbers import MAX_DIGITS, final_number

MAX_ANSWER_CHARACTERS = 200

Extractor = Callable[[str], str | None]
Equality = Callable[[str, str], bool]

_REFUSAL_WORDS = (
    r"(?:i(?: am|'m)? (?:sorry|unable|not sure|not able)|i (?:can ?not|can't|could not|couldn't|do not know|don't know|"
    r"have no (?:idea|answer)|won't|will not)|sorry\b|as an ai\b|no answer\b|unable to\b|"
    r"(?:it )?(?:is |can(?: ?not|'t) be )?(?:unknown|undetermined|indeterminate|determined|answered)\b|"
    r"(?:there is )?(?:not enough|insufficient) information\b|n/?a$|none$|idk\b)"
)
_REFUSAL = re.compile(r"[\W_]*" + _REFUSAL_WORDS, re.IGNORECASE)
_WHOLE_NUMBER = re.compile(r"[$€£¥]?[-+\u2212]?[$€£¥]?[0-9][0-9,]*(?:\.[0-9]+)?%?\.?")


def _number_key(number: Decimal) -> str:
    # The default context would round to 28 digits and so call different long numbers equal.
    return format(number.normalize(Context(prec=2 * MAX_DIGITS)), "E")


def _answer_key(text: str) -> str | None:
    """Return a number's value, or the normalised text when it is short enough to be an answer."""
    text = text.strip()
    number = final_number(text) if _WHOLE_NUMBER.fullmatch(text[:MAX_ANSWER_CHARACTERS]) else None
    if number is not None:
        return _number_key(number)
    return (normalise_answer(text) or None) if 0 < len(text) <= MAX_ANSWER_CHARACTERS else None


def extract_answer(text: str) -> str | None:
    r"""Return the answer that a completion ends on, in a form in which equal answers are equal strings.

    The first of these that exists: the number after the last `####`; what the last `\boxed{...}` holds; the rest of
    the line after the last "Answer:" or "answer is"; the last number of the text; the last line. A number gives its
    value (`1,800`, `$1800.00` and `1800` are one answer), anything else its text without case, punctuation and
    articles. Time is linear in the text.

    Args:
        text: a completion.

    Returns:
        The answer; None for an empty text, for a text answer of more than 200 characters, and for `####` without a
        number. A number that `final_number` refuses (more than 64 digits) counts as text.
    """
    if "####" in text:
        number = final_number(text)
        return None if number is None else _number_key(number)
    marked = last_boxed(text)
    marked = last_answer_line(text) if marked is None else marked
    if marked:
        return _answer_key(marked)
    number = final_number(text)
    if number is not None:
        return _number_key(number)
    lines = text.strip().splitlines()
    return _answer_key(lines[-1]) if lines else None


def is_refusal(text: str, answer: str | None) -> bool:
    """Tell whether a completion declines to answer: it, or its answer, begins with one of a list of English phrases.

    "I don't know", "I'm sorry, but ...", "cannot be determined", "unknown", "N/A" and the like. A text that declines
    in its middle, or in another language, is not recognised: give `SelfConsistencyReward` a function of your own.

    Args:
        text: the completion.
        answer: what was extracted from it, or None.
    """
    return bool(_REFUSAL.match(text[:MAX_ANSWER_CHARACTERS]) or (answer and _REFUSAL.match(answer)))


def equivalence_classes(answers: Sequence[str | None], equal: Equality | None = None) -> list[list[int]]:
    """Group the rows whose answers are equal, the largest class first; rows without an answer are in no class.

    Args:
        answers: one answer, or None, per row.
        equal: a function of two answers; string equality by default. Each answer is compared with the first answer of
            each class, so a relation that isn't transitive depends on the order of the rows.

    Returns:
        The rows of each class in rising order; of two classes of one size the one that occurs first comes first.
    """
    classes: list[list[int]] = []
    for row, answer in enumerate(answers):
        if answer is None:
            continue
        for members in classes:
            first = answers[members[0]]
            if first == answer or (equal is not None and first is not None and equal(first, answer)):
                members.append(row)
                break
        else:
            classes.append([row])
    return sorted(classes, key=len, reverse=True)

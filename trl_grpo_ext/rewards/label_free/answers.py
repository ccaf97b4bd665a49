"""The answer that a completion votes for, refusals, and classes of equal answers. Nothing is evaluated."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from trl_grpo_ext.rewards.matching import normalise_answer
from trl_grpo_ext.rewards.math_answers import final_answer
from trl_grpo_ext.rewards.math_values import fast_equal

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
# Letters, spaces and marks only: what no arithmetic could tell apart.
_WORDS = re.compile(r"[^\d\\^_={}<>+*/|\u2212]+")


def extract_answer(text: str) -> str | None:
    r"""Return the answer that a completion ends on: that of `final_answer`, else the last line.

    `final_answer`: what the last `\boxed{...}` holds, else what follows the last `####`, "Answer:" or "answer is", else
    the last `$formula$` or number. Time is linear in the text.

    Args:
        text: a completion.

    Returns:
        The answer as it is written; None for an empty text and for an answer of more than 200 characters.
    """
    answer = final_answer(text)
    if answer is None:
        answer = (text.strip().splitlines() or [""])[-1]
    answer = answer.strip()
    return answer if 0 < len(answer) <= MAX_ANSWER_CHARACTERS else None


@lru_cache(maxsize=4096)
def same_answer(first: str, second: str) -> bool:
    """Tell whether two answers are one: words by `normalise_answer`, everything else by `fast_equal`.

    So case, articles and punctuation of words make no difference, nor do units and spelling of numbers, fractions, sets
    and intervals. What only algebra could tell counts as different.
    """
    if _WORDS.fullmatch(first) and _WORDS.fullmatch(second):
        return normalise_answer(first) == normalise_answer(second)
    return fast_equal(first, second) is True


def is_refusal(text: str, answer: str | None) -> bool:
    """Tell whether a completion declines to answer: it, or its answer, begins with one of a list of English phrases.

    "I don't know", "I'm sorry, but ...", "cannot be determined", "unknown", "N/A" and the like. A text that declines
    in its middle, or in another language, is not recognised: give `SelfConsistencyReward` a function of your own.

    Args:
        text: the completion.
        answer: what was extracted from it, or None.
    """
    return bool(_REFUSAL.match(text[:MAX_ANSWER_CHARACTERS]) or (answer and _REFUSAL.match(answer)))


def equivalence_classes(answers: Sequence[str | None], equal: Equality = same_answer) -> list[list[int]]:
    """Group the rows whose answers are equal, the largest class first; rows without an answer are in no class.

    Args:
        answers: one answer, or None, per row.
        equal: a function of two answers; `same_answer` by default. Each answer is compared with the first answer of
            each class, so a relation that isn't transitive depends on the order of the rows (50% is 50, and 1/2).

    Returns:
        The rows of each class in rising order; of two classes of one size the one that occurs first comes first.
    """
    classes: list[list[int]] = []
    for row, answer in enumerate(answers):
        if answer is None:
            continue
        for members in classes:
            first = answers[members[0]]
            if first == answer or (first is not None and equal(first, answer)):
                members.append(row)
                break
        else:
            classes.append([row])
    return sorted(classes, key=len, reverse=True)

"""Answers compared with a reference: numbers with a tolerance, text after normalisation, multiple choice."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from trl_grpo_ext.rewards.extraction import last_answer_line, last_boxed
from trl_grpo_ext.rewards.named import NamedReward, check_finite
from trl_grpo_ext.rewards.numbers import final_number
from trl_grpo_ext.rewards.text import Completion, completion_text, equal_texts, ground_truth_texts

_ARTICLES = frozenset({"a", "an", "the"})
# The point of "1.5" and the sign of "-5" are part of the number, not punctuation.
_NUMBER_MARK = re.compile(r"(?<=\d)\.(?=\d)|(?<!\w)[-\u2212](?=\.?\d)")

_DECORATION = " \t\n()[]{}*_$.:`\"'"
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\b")


@dataclass(frozen=True, kw_only=True)
class NumericMatch(NamedReward):
    r"""1.0 where the completion's final number a is near the solution's final number g, else 0.0.

    near: |a - g| <= max(relative * |g|, absolute), in exact decimal arithmetic. The final number is that of
    `gsm8k_number`: after the last `####`, else in the last `\boxed{...}`, else the last of the text. Range {0, 1}.

    Failure modes: units and percent signs are ignored ("3 km" equals "3 m"); a completion that lists many numbers is
    judged by the last one; `relative` alone is no tolerance at all around g = 0.

    Args:
        relative: tolerance as a share of |g|; 1e-6 by default.
        absolute: tolerance in the solution's own unit; 0.0 by default.
        name: `__name__`, under which TRL logs the reward.

    Raises:
        ValueError: a tolerance is negative or not finite; when called: a solution is None, NaN or without a number.
    """

    relative: float = 1e-6
    absolute: float = 0.0
    name: str = "numeric_match"

    def __post_init__(self) -> None:
        check_finite("NumericMatch", "relative", self.relative, at_least=0)
        check_finite("NumericMatch", "absolute", self.absolute, at_least=0)

    def _gold(self, row: int, text: str) -> Decimal:
        number = final_number(text)
        if number is None:
            raise ValueError(
                f"Column 'solution' holds no number in row {row} of this reward call ({text[-80:]!r}); {self.name} "
                "needs one, such as '3.14': drop the row, or reward it with normalised_match."
            )
        return number

    def _near(self, answer: Decimal | None, gold: Decimal) -> bool:
        if answer is None:
            return False
        tolerance = max(Decimal(repr(self.relative)) * abs(gold), Decimal(repr(self.absolute)))
        return abs(answer - gold) <= tolerance

    def __call__(self, completions: Sequence[Completion], solution: Sequence[Any], **kwargs: Any) -> list[float]:
        """Return one reward per completion; see the class."""
        golds = ground_truth_texts("solution", solution, len(completions))
        numbers = [self._gold(row, gold) for row, gold in enumerate(golds)]
        answers = [final_number(completion_text(completion)) for completion in completions]
        return [float(self._near(answer, number)) for answer, number in zip(answers, numbers, strict=True)]


def _without_punctuation(text: str) -> str:
    kept = {match.start() for match in _NUMBER_MARK.finditer(text)}
    return "".join(
        character
        for position, character in enumerate(text)
        if position in kept or not unicodedata.category(character).startswith("P")
    )


def normalise_answer(text: str) -> str:
    """Return the text in the form in which SQuAD compares answers: no case, punctuation, articles, extra white space.

    Unicode forms are folded (NFKC), so full-width letters equal plain ones. Unlike SQuAD's script it keeps the point
    of a decimal number and a minus sign, and a text of nothing but articles or punctuation stays as it is.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
    words = _without_punctuation(folded).split()
    return " ".join(word for word in words if word not in _ARTICLES) or " ".join(words) or " ".join(folded.split())


def normalised_match(completions: Sequence[Completion], solution: Sequence[Any], **kwargs: Any) -> list[float]:
    """1.0 where completion and solution are equal after `normalise_answer`, else 0.0. Range {0, 1}.

    Failure modes: the whole completion is compared, so an explanation around the answer makes it 0; symbols that are
    punctuation in Unicode vanish ("C#" equals "C").

    Args:
        completions: one string or message list per row.
        solution: the ground truth of each row.
        kwargs: the other columns, unused.

    Raises:
        ValueError: a solution is None or NaN.
    """
    return equal_texts(completions, solution, normalise_answer)


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(NamedReward):
    r"""1.0 where the completion chooses the solution's letter, else 0.0. Range {0, 1}.

    The chosen letter is the first of these that is found: the letter in the last `\boxed{...}`; the letter after the
    last "Answer:" or "answer is"; the letter that opens the last line ("(B) Paris"); a capital letter that stands
    alone at the end ("I choose B."). A or I before another word is an article or a pronoun, not a choice; two letters
    ("A or B") are no choice.

    Failure modes: a text that ends on a letter by chance ("vitamin A.") chooses it; a choice named only by its text
    ("Paris") is 0.

    Args:
        letters: the letters of the choices, "ABCDEFGHIJ" by default.
        name: `__name__`, under which TRL logs the reward.

    Raises:
        ValueError: `letters` is not made of different capital letters from A to Z; when called: a solution is None,
            NaN, or names no letter.
    """

    letters: str = "ABCDEFGHIJ"
    name: str = "multiple_choice"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Z]+", self.letters) or len(set(self.letters)) < len(self.letters):
            raise ValueError(f"MultipleChoice: letters must be different letters from A to Z, not {self.letters!r}.")

    def _leading(self, text: str) -> str | None:
        """Return the letter that a text opens with when it is a choice and not a word."""
        match = re.match(rf"[\s(\[{{*_$\"'`]*([{self.letters}])(?![\w'])(.*)", text, re.IGNORECASE | re.DOTALL)
        if not match:
            return None
        letter, rest = match[1].upper(), match[2]
        if re.match(rf"[\s)\]*]*(?:or|and|/|,|&)[\s(\[*]*[{self.letters}]\b(?!')", rest, re.IGNORECASE):
            return None
        is_word = letter in "AI" and re.match(r"\s+(?!(?:because|since)\b)\w", rest)
        return None if is_word else letter

    def _last_line(self, text: str) -> str | None:
        line = text.rstrip().rpartition("\n")[2]
        # Without a mark after the letter the line may be a sentence; a letter on its own is a choice in any case.
        opens = re.match(rf"\s*[*_]*(?:\([{self.letters}]\)|[{self.letters}][).:])", line)
        if opens or len(line.strip(_DECORATION)) == 1:
            return self._leading(line)
        match = re.search(rf"(?<![\w'.-])([{self.letters}])[)\]*_.!`\"'}}$]*$", line)
        hedged = match and re.search(rf"\b[{self.letters}]\W{{1,4}}(?:(?:or|and)\W{{1,4}})?$", line[: match.start()])
        return match[1] if match and not hedged else None

    def choice(self, text: str) -> str | None:
        """Return the letter that a completion's text chooses, or None."""
        for found in (last_boxed(text), last_answer_line(text)):
            letter = None if found is None else self._leading(_LATEX_TEXT.sub("", found))
            if letter:
                return letter
        return self._last_line(text)

    def _gold(self, row: int, text: str) -> str:
        letter = self._leading(text) if len(text.strip(_DECORATION)) == 1 else self.choice(text)
        if letter is None:
            raise ValueError(
                f"Column 'solution' names none of the choices {self.letters} in row {row} of this reward call "
                f"({text[-80:]!r}); give a letter such as 'B' or '(B) Paris'."
            )
        return letter

    def __call__(self, completions: Sequence[Completion], solution: Sequence[Any], **kwargs: Any) -> list[float]:
        """Return one reward per completion; see the class."""
        golds = ground_truth_texts("solution", solution, len(completions))
        letters = [self._gold(row, gold) for row, gold in enumerate(golds)]
        choices = [self.choice(completion_text(completion)) for completion in completions]
        return [float(choice == letter) for choice, letter in zip(choices, letters, strict=True)]


numeric_match = NumericMatch()
multiple_choice = MultipleChoice()

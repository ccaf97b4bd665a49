r"""Strict and lenient scoring of an answer, as lm-evaluation-harness has them for GSM8K, in TRL's reward convention.

Any reward function is a scorer: `f(completions, <column>, **kwargs) -> list[float | None]`. One that has a method
`extract(text) -> str | None` gets maj@k too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_NUMBER = r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|-?\.[0-9]+"
MARKED = rf"####[ \t]*\$?({_NUMBER})"
ANY = rf"({_NUMBER})"


def text_of(completion: Any) -> str:
    """Return the text of a completion: itself, or the last assistant message's."""
    if isinstance(completion, str):
        return completion
    spoken = [message.get("content") or "" for message in completion if message.get("role") == "assistant"]
    return str(spoken[-1]) if spoken else ""


def plain_number(text: str) -> str:
    """Return a number in one spelling: without separators, a leading plus, or zeros that say nothing."""
    text = text.replace(",", "").strip()
    whole, point, fraction = text.partition(".")
    sign = "-" if whole.startswith("-") else ""
    whole, fraction = whole.lstrip("+-").lstrip("0") or "0", fraction.rstrip("0")
    plain = f"{whole}.{fraction}" if point and fraction else whole
    return plain if plain == "0" else sign + plain


@dataclass(frozen=True)
class AnswerMatch:
    """1.0 where the last answer that a pattern finds in the completion equals the solution's, else 0.0.

    Args:
        name: `__name__`, under which figures are reported.
        pattern: regular expression with one group, the answer; its last match counts.
        numbers: compare as numbers in one spelling (`1,800.0` is `1800`); else as texts without outer white space.

    Raises:
        ValueError: `pattern` has not exactly one group; when called: a solution without an answer.
    """

    name: str
    pattern: str
    numbers: bool = True

    def __post_init__(self) -> None:
        if re.compile(self.pattern).groups != 1:
            raise ValueError(f"AnswerMatch: pattern must have one group, the answer: {self.pattern!r}.")

    @property
    def __name__(self) -> str:
        return self.name

    def extract(self, text: str) -> str | None:
        """Return the answer in a text, or None without one."""
        found = re.findall(self.pattern, text)
        if not found:
            return None
        return plain_number(found[-1]) if self.numbers else found[-1].strip()

    def _gold(self, value: Any) -> str:
        text = text_of(value) if isinstance(value, (str, list)) else str(value)
        answer = AnswerMatch("gold", MARKED).extract(text) or AnswerMatch("gold", ANY).extract(text)
        if not self.numbers:
            return self.extract(text) or text.strip()
        if answer is None:
            raise ValueError(
                f"{self.name}: solution holds no number: {text[-80:]!r}; drop the row, or use exact_match."
            )
        return answer

    def __call__(self, completions: Sequence[Any], solution: Sequence[Any], **kwargs: Any) -> list[float]:
        """Return one score per completion."""
        return [
            float(self.extract(text_of(completion)) == self._gold(gold))
            for completion, gold in zip(completions, solution, strict=True)
        ]


strict_match = AnswerMatch("strict_match", MARKED)
flexible_match = AnswerMatch("flexible_match", ANY)
SCORERS = {scorer.name: scorer for scorer in (strict_match, flexible_match)}

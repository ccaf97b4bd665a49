"""A calculator for text that a model wrote: its own tokenizer and parser, exact fractions, no power operator.

Grammar: sum := product (("+" | "-") product)*; product := factor (("*" | "/") factor)*;
factor := whole number | "(" sum ")" | "-" factor. Everything else is refused, and so is everything past the bounds
below, so the time is linear in at most `MAX_CHARACTERS` characters and no number grows beyond a few hundred digits.
"""

import re
from dataclasses import dataclass, field
from fractions import Fraction

MAX_CHARACTERS = 512
MAX_DIGITS = 9
MAX_NUMBERS = 32
MAX_DEPTH = 32

_TOKEN = re.compile(r"[ \t]*([0-9]+|[-+*/()])")
_SPELLINGS = (
    ("\\times", "*"),
    ("\\cdot", "*"),
    ("\\div", "/"),
    ("\\left", ""),
    ("\\right", ""),
    ("\u00d7", "*"),
    ("\u00b7", "*"),
    ("\u22c5", "*"),
    ("\u00f7", "/"),
    ("\u2212", "-"),
    ("\u2013", "-"),
)


class _Refused(Exception):
    """The text is no expression of the grammar within the bounds."""


def _tokens(text: str) -> list[str]:
    if len(text) > MAX_CHARACTERS:
        raise _Refused
    for written, plain in _SPELLINGS:
        text = text.replace(written, plain)
    text = text.strip()
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match or len(match[1]) > MAX_DIGITS:
            raise _Refused
        tokens.append(match[1])
        position = match.end()
    return tokens


@dataclass
class _Parser:
    """Recursive descent over the tokens, last one first in `pending`."""

    pending: list[str]
    numbers: list[int] = field(default_factory=list)
    depth: int = 0

    def _next_is(self, *options: str) -> bool:
        return bool(self.pending) and self.pending[-1] in options

    def total(self) -> Fraction:
        value = self._product()
        while self._next_is("+", "-"):
            value = value + self._product() if self.pending.pop() == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while self._next_is("*", "/"):
            if self.pending.pop() == "*":
                value *= self._factor()
            else:
                value /= self._factor()
        return value

    def _factor(self) -> Fraction:
        token = self.pending.pop() if self.pending else ""
        if token.isdecimal() and len(self.numbers) < MAX_NUMBERS:
            self.numbers.append(int(token))
            return Fraction(int(token))
        if token not in ("-", "(") or self.depth >= MAX_DEPTH:
            raise _Refused
        self.depth += 1
        value = -self._factor() if token == "-" else self._group()
        self.depth -= 1
        return value

    def _group(self) -> Fraction:
        value = self.total()
        if not self._next_is(")"):
            raise _Refused
        self.pending.pop()
        return value


def evaluate_arithmetic(text: str) -> tuple[Fraction, list[int]] | None:
    r"""Return the exact value of an arithmetic expression and the whole numbers in it, in their order.

    `\times`, `\cdot`, `\div` and the Unicode signs for multiplication, division and minus are read as `*`, `/`, `-`.
    Nothing is evaluated but + - * / over fractions.

    Args:
        text: any text.

    Returns:
        (value, numbers), or None: not an expression of the grammar (powers, decimals, names, `//`), a division by
        zero, more than 512 characters, 9 digits in a number, 32 numbers, or a depth of 32.
    """
    try:
        parser = _Parser(_tokens(text)[::-1])
        value = parser.total()
    except (_Refused, ZeroDivisionError):
        return None
    return None if parser.pending else (value, parser.numbers)

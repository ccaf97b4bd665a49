"""A calculator for text that a model wrote: its own parser, exact fractions, no power operator.

Grammar: sum := product (("+" | "-") product)*; product := factor (("*" | "/") factor)*;
factor := number | "(" sum ")" | "-" factor. Everything else is refused, and so is everything past the bounds, so the
time is linear in the tokens and no number grows beyond a few hundred digits.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

MAX_CHARACTERS = 512
MAX_DIGITS = 9
MAX_NUMBERS = 32
MAX_DEPTH = 32

SPELLINGS = (
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
# A minus with a space after it: it subtracts, but is no sign of the number that follows.
DETACHED_MINUS = "- "

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_TOKEN = re.compile(r"[ \t]*([0-9]+|[-+*/()])")


class NotAnExpression(ValueError):
    """The text is no expression of the grammar, or one past the bounds."""


@dataclass
class Calculation:
    """What an expression holds: its numbers in their order, and how many operations between two values it has."""

    numbers: list[Fraction] = field(default_factory=list)
    operations: int = 0


@dataclass
class _Parser(Calculation):
    """Recursive descent over the tokens, last one first in `pending`."""

    pending: list[str] = field(default_factory=list)
    max_numbers: int = MAX_NUMBERS
    max_depth: int = MAX_DEPTH
    depth: int = 0

    def _next_is(self, *options: str) -> bool:
        return bool(self.pending) and self.pending[-1] in options

    def _operator(self) -> str:
        self.operations += 1
        return self.pending.pop()

    def total(self) -> Fraction:
        value = self._product()
        while self._next_is("+", "-", DETACHED_MINUS):
            value = value + self._product() if self._operator() == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while self._next_is("*", "/"):
            value = value * self._factor() if self._operator() == "*" else value / self._factor()
        return value

    def _factor(self) -> Fraction:
        token = self.pending.pop() if self.pending else ""
        if _NUMBER.fullmatch(token):
            if len(self.numbers) >= self.max_numbers:
                raise NotAnExpression
            self.numbers.append(Fraction(token))
            return self.numbers[-1]
        if token not in ("-", "(") or self.depth >= self.max_depth:
            raise NotAnExpression
        self.depth += 1
        value = -self._factor() if token == "-" else self._group()
        self.depth -= 1
        return value

    def _group(self) -> Fraction:
        value = self.total()
        if not self._next_is(")"):
            raise NotAnExpression
        self.pending.pop()
        return value


def calculate(
    tokens: Sequence[str], max_numbers: int = MAX_NUMBERS, max_depth: int = MAX_DEPTH
) -> tuple[Fraction, Calculation]:
    """Return the exact value of an expression, and what it holds.

    Args:
        tokens: numbers in decimal digits with at most one point, operators, parentheses, `DETACHED_MINUS`. Whoever makes
            them bounds their length.
        max_numbers: numbers allowed.
        max_depth: parentheses and signs allowed inside one another.

    Raises:
        NotAnExpression: not an expression of the grammar, or past a bound.
        ZeroDivisionError: it divides by zero.
    """
    parser = _Parser(pending=list(tokens)[::-1], max_numbers=max_numbers, max_depth=max_depth)
    value = parser.total()
    if parser.pending:
        raise NotAnExpression
    return value, parser


def _tokens(text: str) -> list[str]:
    if len(text) > MAX_CHARACTERS:
        raise NotAnExpression
    for written, plain in SPELLINGS:
        text = text.replace(written, plain)
    text = text.strip()
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match or len(match[1]) > MAX_DIGITS:
            raise NotAnExpression
        tokens.append(match[1])
        position = match.end()
    return tokens


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
        value, calculation = calculate(_tokens(text))
    except (NotAnExpression, ZeroDivisionError):
        return None
    return value, [int(number) for number in calculation.numbers]

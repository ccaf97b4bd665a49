r"""Arithmetic steps in a text, such as `3 + 4 * 2 = 11`, re-computed exactly by a parser of their own.

Grammar, over exact fractions and nothing else: sums of products of numbers, parentheses, and a minus that touches its
number. A step is `left = right`, where everything between `=` and the nearest word, line end or punctuation mark on
either side must parse, and the left side must hold an operator; whatever else stands there (powers, percent signs,
variables, roots) makes it no step rather than a wrong one. Time is linear in the text; what is taken of it is bounded.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

MAX_CHARACTERS = 50_000
MAX_STEPS = 256
MAX_TOKENS = 64
MAX_DEPTH = 16
MAX_DIGITS = 20

_SPELLINGS = (
    ("{,}", ","),
    ("\\times", "*"),
    ("\\cdot", "*"),
    ("\\div", "/"),
    ("\\left", ""),
    ("\\right", ""),
    ("\\(", "\n"),
    ("\\)", "\n"),
    ("\\[", "\n"),
    ("\\]", "\n"),
    ("\\$", ""),
    ("\u2212", "-"),
    ("\u2013", "-"),
    ("×", "*"),
    ("·", "*"),
    ("÷", "/"),
)
# In order: a bullet, a number, an operator, a letter that multiplies, a word or a mark that ends an expression, a
# currency sign, and any other visible character, which no expression may hold.
_TOKEN = re.compile(
    r"(?P<bullet>^[ \t]*[-*+](?=[ \t]))|(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"|(?P<operator>[-+*/()=])|(?P<times>(?<=[0-9) ])[xX](?=[0-9( ]))"
    r"|(?P<unit>(?<=[0-9)])[A-Za-z](?![A-Za-z]))|(?P<stop>[^\W\d_][\w']*|[.,;:?!](?!\S)|[\n<>\"'|\u2248\u2192])"
    r"|(?P<currency>[$€£¥])|(?P<other>\S)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Token:
    """A piece of an expression: `kind` is "number", "operator", "times" or "other"; `touches` the one before it."""

    kind: str
    text: str
    touches: bool


class NotAnExpression(Exception):
    """The tokens are no expression of the grammar, or one beyond the bounds."""


def _runs(text: str) -> Iterator[list[list[Token]]]:
    """Yield chains: the token lists between the `=` of one uninterrupted stretch."""
    chain: list[list[Token]] = [[]]
    end = -1
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        if kind in ("stop", "bullet"):
            yield chain
            chain = [[]]
        elif match[0] == "=":
            chain.append([])
        elif kind != "currency":
            chain[-1].append(Token(kind, match[0], match.start() == end))
        end = match.end()
    yield chain


class _Parser:
    """Recursive descent over one token list. Depth, tokens and digits are bounded, so every value is small."""

    def __init__(self, tokens: list[Token]) -> None:
        if not 0 < len(tokens) <= MAX_TOKENS:
            raise NotAnExpression
        self.tokens, self.place, self.operations = tokens, 0, 0

    def parse(self) -> Fraction:
        value = self._sum(0)
        if self.place < len(self.tokens):
            raise NotAnExpression
        return value

    def _peek(self) -> str:
        token = self.tokens[self.place] if self.place < len(self.tokens) else None
        return "" if token is None else "*" if token.kind == "times" else token.text

    def _sum(self, depth: int) -> Fraction:
        value = self._product(depth)
        while (sign := self._peek()) in ("+", "-"):
            self._advance_operator()
            term = self._product(depth)
            value = value + term if sign == "+" else value - term
        return value

    def _product(self, depth: int) -> Fraction:
        value = self._atom(depth)
        while (sign := self._peek()) in ("*", "/"):
            self._advance_operator()
            factor = self._atom(depth)
            value = value * factor if sign == "*" else value / factor
        return value

    def _advance_operator(self) -> None:
        self.place += 1
        self.operations += 1

    def _atom(self, depth: int) -> Fraction:
        if self.place >= len(self.tokens) or depth > MAX_DEPTH:
            raise NotAnExpression
        token = self.tokens[self.place]
        self.place += 1
        if token.text == "(":
            value = self._sum(depth + 1)
            if self._peek() != ")":
                raise NotAnExpression
            self.place += 1
            return value
        if token.text == "-":
            return -self._number(must_touch=True)
        self.place -= 1
        return self._number(must_touch=False)

    def _number(self, must_touch: bool) -> Fraction:
        token = self.tokens[self.place] if self.place < len(self.tokens) else None
        if (
            token is None
            or token.kind != "number"
            or len(token.text) > MAX_DIGITS
            or (must_touch and not token.touches)
        ):
            raise NotAnExpression
        self.place += 1
        return Fraction(token.text.replace(",", ""))


def _evaluate(tokens: list[Token]) -> tuple[Fraction | None, int]:
    """Return (value, number of operations); None for a division by zero."""
    parser = _Parser(tokens)
    try:
        return parser.parse(), parser.operations
    except ZeroDivisionError:
        return None, 1


def _is_written_out(value: Fraction, claim: Fraction, right: list[Token]) -> bool:
    """Tell whether the right side is a lone decimal that is the value, rounded or cut off at its last place."""
    decimals = right[-1].text.partition(".")[2]
    if not decimals or len(right) > 2:
        return False
    places = abs(value - claim) * 10 ** len(decimals)
    return places <= Fraction(1, 2) or (places < 1 and abs(claim) < abs(value))


def _verdict(left: list[Token], right: list[Token]) -> bool | None:
    try:
        value, operations = _evaluate(left)
        claim, _ = _evaluate(right)
    except NotAnExpression:
        return None
    if not operations:
        return None
    if value is None or claim is None:
        return False
    return value == claim or _is_written_out(value, claim, right)


def check_steps(text: str) -> list[bool]:
    """Return for each arithmetic step of a text whether it is right, in order.

    `a op b = c` with any number of operations among + - * / (also ×, ÷, ·, `x` between numbers, `\\times`, `\\cdot`,
    `\\div`), parentheses, thousands separators, currency signs and negative numbers; in `2 + 3 = 5 = 10 / 2` each `=`
    whose left side holds an operator is a step. A right side written as a decimal is right when it is the value
    rounded or cut off there (`10 / 3 = 3.33`); everything else must be equal as fractions; a division by zero is wrong.

    Args:
        text: any text; the first 50,000 characters and 256 steps count. Expressions of more than 64 tokens, numbers
            of more than 20 characters and parentheses deeper than 16 are no steps.
    """
    text = text[:MAX_CHARACTERS]
    for spelling, plain in _SPELLINGS:
        text = text.replace(spelling, plain)
    verdicts: list[bool] = []
    for chain in _runs(text):
        for left, right in pairwise(chain):
            verdict = _verdict(left, right)
            if verdict is not None:
                verdicts.append(verdict)
            if len(verdicts) == MAX_STEPS:
                return verdicts
    return verdicts

r"""Arithmetic steps in a text, such as `3 + 4 * 2 = 11`, re-computed exactly by `rewards.arithmetic`.

Sums of products of numbers, parentheses, and a minus that touches what it turns round. A step is `left = right`, where everything between `=` and the nearest word, line end or punctuation mark on
either side must parse, and the left side must hold an operator; whatever else stands there (powers, percent signs,
variables, roots) makes it no step rather than a wrong one. Time is linear in the text; what is taken of it is bounded.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

from trl_grpo_ext.rewards.arithmetic import DETACHED_MINUS, SPELLINGS, NotAnExpression, calculate

MAX_CHARACTERS = 50_000
MAX_STEPS = 256
MAX_TOKENS = 64
MAX_DEPTH = 16
MAX_DIGITS = 20

_SPELLINGS = (
    ("{,}", ","),
    ("\\(", "\n"),
    ("\\)", "\n"),
    ("\\[", "\n"),
    ("\\]", "\n"),
    ("\\$", ""),
    *SPELLINGS,
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


def _runs(text: str) -> Iterator[list[list[str]]]:
    """Yield chains: the token lists between the `=` of one uninterrupted stretch."""
    chain: list[list[str]] = [[]]
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        if kind in ("stop", "bullet"):
            yield chain
            chain = [[]]
        elif match[0] == "=":
            chain.append([])
        elif kind != "currency":
            chain[-1].append(_token(kind, match))
    yield chain


def _token(kind: str, match: re.Match[str]) -> str:
    if match[0] == "-" and not re.compile(r"[0-9.($€£¥]").match(match.string, match.end()):
        return DETACHED_MINUS
    return "*" if kind == "times" else match[0].replace(",", "")


def _evaluate(tokens: list[str]) -> tuple[Fraction | None, int]:
    """Return (value, number of operations); None for a division by zero."""
    if not 0 < len(tokens) <= MAX_TOKENS or any(len(token) > MAX_DIGITS for token in tokens):
        raise NotAnExpression
    try:
        value, calculation = calculate(tokens, MAX_TOKENS, MAX_DEPTH)
    except ZeroDivisionError:
        return None, 1
    return value, calculation.operations


def _is_written_out(value: Fraction, claim: Fraction, right: list[str]) -> bool:
    """Tell whether the right side is a lone decimal that is the value, rounded or cut off at its last place."""
    decimals = right[-1].partition(".")[2]
    if not decimals or len(right) > 2:
        return False
    places = abs(value - claim) * 10 ** len(decimals)
    return places <= Fraction(1, 2) or (places < 1 and abs(claim) < abs(value))


def _verdict(left: list[str], right: list[str]) -> bool | None:
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

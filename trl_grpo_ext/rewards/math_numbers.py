r"""Exact values of numbers as LaTeX and plain text write them. No expression is evaluated."""

import re
from fractions import Fraction

MAX_DIGITS = 64

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+)"
_EXPONENT = r"(?:[eE]([-+]?\d{1,3})|\\(?:times|cdot) ?10\^\{?(-?\d{1,3})\}?)?"
_SCIENTIFIC = re.compile(rf"([-+]?)({_DECIMAL}){_EXPONENT}")
_PLAIN = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_QUOTIENT = re.compile(rf"([-+]?)(?:\\frac\{{({_PLAIN})\}}\{{({_PLAIN})\}}|(\d+)/(\d+)|\{{?(\d+)\}}?/\{{?(\d+)\}}?)")
_MIXED = re.compile(r"([-+]?)(\d+)(?:\\frac\{(\d+)\}\{(\d+)\}| (\d+)/(\d+))")


def _decimal(text: str) -> Fraction | None:
    digits = text.replace(",", "")
    return Fraction(digits) if len(digits) <= MAX_DIGITS else None


def _quotient(sign: str, numerator: str, denominator: str) -> Fraction | None:
    top, bottom = _decimal(numerator), _decimal(denominator)
    if top is None or not bottom:
        return None
    return -top / bottom if sign == "-" else top / bottom


def parse_number(text: str) -> Fraction | None:
    r"""Return the exact value of a number in `normalise_math`'s spelling, or None.

    Numbers: `12`, `1,234.5`, `.5`, `1.5e3`, `2 \times 10^{-3}`, `3/4`, `\frac{3}{4}`, `1\frac{4}{5}`, `1 4/5`, with a
    sign. None for anything else, for a zero denominator, and for more than 64 digits.
    """
    if match := _SCIENTIFIC.fullmatch(text):
        value = _decimal(match[2])
        power = int(match[3] or match[4] or 0)
        return value if value is None else (-value if match[1] == "-" else value) * Fraction(10) ** power
    if match := _MIXED.fullmatch(text):
        part = _quotient("", match[3] or match[5], match[4] or match[6])
        whole = _decimal(match[2])
        if part is None or whole is None:
            return None
        return -(whole + part) if match[1] == "-" else whole + part
    if match := _QUOTIENT.fullmatch(text):
        return _quotient(match[1], match[2] or match[4] or match[6], match[3] or match[5] or match[7])
    return None

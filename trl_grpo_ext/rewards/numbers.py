r"""The final number of a text, in time linear in its length and without evaluating anything.

No part of the pattern can be matched in two ways, so the scan never backtracks further than one group of thousands.
"""

import re
from collections import deque
from decimal import Decimal

from trl_grpo_ext.rewards.extraction import last_boxed

MAX_DIGITS = 64
MAX_EXPONENT_DIGITS = 3

# A minus after a word, a digit or a closing bracket is a subtraction or a range ("16-4", "10-18"), not a sign.
_NUMBER = (
    r"(?:(?<![\w)\]}])(?P<sign>[-\u2212]))?[$€£¥]?(?:(?<=[$€£¥])(?P<late_sign>[-\u2212]))?"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?<![0-9.])(?=\.[0-9]))(?P<fraction>\.[0-9]+)?"
    r"(?:[eE](?P<exponent>[-+]?[0-9]+))?"
)
_ANY_NUMBER = re.compile(_NUMBER)
_MARKED_NUMBER = re.compile(r"####[ \t]*" + _NUMBER)
_LATEX_SPELLINGS = (("{,}", ","), (",\\!", ","), ("\\,", ","), ("\\$", "$"))


def _value(match: re.Match[str]) -> Decimal | None:
    """Return the matched number, or None when it is longer than any answer: comparing it could take very long."""
    whole, fraction = match["whole"].replace(",", ""), match["fraction"] or ""
    exponent = match["exponent"] or "0"
    if len(whole) + len(fraction) > MAX_DIGITS or len(exponent.lstrip("+-")) > MAX_EXPONENT_DIGITS:
        return None
    sign = "-" if match["sign"] or match["late_sign"] else ""
    return Decimal(f"{sign}{whole or '0'}{fraction}e{exponent}")


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def final_number(text: str) -> Decimal | None:
    r"""Return the number that a text ends on, the way GSM8K and MATH answers are written.

    The first of these that exists: the number right after the last `####` that has one; the last number in the last
    `\boxed{...}`; the last number of the text. Currency signs, `%` and a trailing full stop do not count; `1,234`,
    `1{,}234`, `-3`, `.5`, `18.00` and `1.5e3` are numbers.

    Args:
        text: any text.

    Returns:
        The number, or None when there is none, or when that number has more than 64 digits or an exponent of more
        than 3.
    """
    for latex, plain in _LATEX_SPELLINGS:
        text = text.replace(latex, plain)
    match = _last_match(_MARKED_NUMBER, text) or _last_match(_ANY_NUMBER, last_boxed(text) or "")
    match = match or _last_match(_ANY_NUMBER, text)
    return _value(match) if match else None

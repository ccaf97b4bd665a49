r"""Are two mathematical answers equal? Numbers, brackets and lists of them, compared without evaluating anything."""

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from trl_grpo_ext.rewards.math_numbers import parse_number
from trl_grpo_ext.rewards.math_text import normalise_math

MAX_CHARACTERS = 2000
_MAX_DEPTH = 4

_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?")

_WORD = re.compile(r"[A-Za-z][A-Za-z '-]*")
_ASSIGNMENT = re.compile(r"([A-Za-z])(?:=|\\in ?)(.+)")
_SHORT_UNITS = "cm mm km kg mg ml ft in hr mi lb oz".split()
_UNIT = re.compile(r"(.*?[\d}])(?: ?([a-z]{2}|[A-Za-z.]{3,30}(?: [A-Za-z]{1,30}){0,2}))(?:\^[23])?")
# What `strict` wants to see on both sides, whatever algebra says: relations, bases, percent signs, units and words.
_STRICT_MARK = re.compile(
    rf"[=_%]|\\in(?![A-Za-z])|(?<![\\A-Za-z])(?:[A-Za-z]{{3,}}|(?:{'|'.join(_SHORT_UNITS)})(?![A-Za-z]))"
)
# Words that make another number of the one before them.
_NOT_UNITS = frozenset(
    "half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths "
    "ninth ninths tenth tenths hundredth hundredths thousandth thousandths dozen dozens hundred hundreds thousand "
    "thousands million millions billion billions trillion trillions squared cubed factorial sqrt infinity base mod "
    "modulo times over plus minus and or to pi tau percent".split()
)
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Group:
    """Several answers: `brackets` is "()", "[]", "(]", "[)", "{}" for a set, or "" for a bare list."""

    brackets: str
    items: tuple["Value", ...]


Value = Fraction | Group | str


def _without_unit(text: str) -> str:
    """Return the number of "5 cents" or "15 cm^2"; the text itself when it is not a number and a unit."""
    match = _UNIT.fullmatch(text)
    if not match or parse_number(match[1]) is None:
        return text
    words = match[2].rstrip(".").split(" ")
    short = len(words[0]) == 2 and words[0] not in _SHORT_UNITS
    return text if short or _NOT_UNITS.intersection(map(str.lower, words)) else match[1]


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def _brackets(text: str) -> tuple[str, str] | None:
    """Return (brackets, content) of a text that is one bracketed group, or None."""
    plain = text.replace("\\{", "{").replace("\\}", "}")
    if len(plain) < 2 or plain[0] not in _OPENING or plain[-1] not in _CLOSING:
        return None
    depth = 0
    for position, character in enumerate(plain):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0 and position < len(plain) - 1:
            return None
    return plain[0] + plain[-1], plain[1:-1]


def _atom(text: str, strict: bool) -> Value:
    value = parse_number(text if strict else _without_unit(text))
    return text if value is None else value


def parse_value(text: str, strict: bool = False, depth: int = _MAX_DEPTH) -> Value:
    """Return the value of a text in `normalise_math`'s spelling: a number, a group of values, or the text itself.

    Args:
        text: the text.
        strict: whether units count; by default "5 cents" is 5.
        depth: how deep groups may be nested; below that, the text stays text.
    """
    grouped = _brackets(text)
    if grouped and depth:
        brackets, content = grouped
        parts = _split(content)
        if len(parts) > 1 or brackets == "{}":
            return Group(brackets, tuple(parse_value(part.strip(), strict, depth - 1) for part in parts))
        # Parentheses around one number or letter are decoration: (5), (C).
        return parse_value(content.strip(), strict, depth - 1) if re.fullmatch(r"\(-?\w+\)", text) else text
    parts = _split(text)
    if len(parts) > 1 and depth and not _THOUSANDS.fullmatch(_without_unit(text)):
        return Group("", tuple(parse_value(part.strip(), strict, depth - 1) for part in parts))
    return _atom(text, strict)


def _same_word(first: str, second: str, strict: bool) -> bool | None:
    if first == second:
        return True
    if not (_WORD.fullmatch(first) and _WORD.fullmatch(second)):
        return None
    # "x" and "X" are two variables.
    return not strict and min(len(first), len(second)) > 1 and first.casefold() == second.casefold()


def _same_groups(first: Group, second: Group, strict: bool) -> bool | None:
    if first.brackets != second.brackets:
        return None
    if first.brackets in ("", "{}") and Counter(first.items) == Counter(second.items):
        return True
    if len(first.items) != len(second.items):
        return False
    pairs = [same_value(a, b, strict) for a, b in zip(first.items, second.items, strict=True)]
    if all(pairs):
        return True
    if first.brackets in ("", "{}"):
        numbers = all(isinstance(item, Fraction) for item in first.items + second.items)
        return False if numbers else None
    return False if False in pairs else None


def same_value(first: Value, second: Value, strict: bool = False) -> bool | None:
    """Return whether two values are equal; None when only algebra could tell.

    Sets and bare lists are compared without regard to order, brackets of other kinds in their order.
    """
    if isinstance(first, Group) and isinstance(second, Group):
        return _same_groups(first, second, strict)
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first == second
    if isinstance(first, str) and isinstance(second, str):
        return _same_word(first, second, strict)
    text = first if isinstance(first, str) else second
    if not isinstance(text, str):
        # One number against several: math-verify would let [42,42] pass for 42.
        return False
    return False if len(text) > 2 and _WORD.fullmatch(text) else None


def _percent(text: str) -> str | None:
    for sign in ("%", " percent"):
        if text.endswith(sign):
            return text.removesuffix(sign).strip()
    return None


def _forms(text: str, strict: bool) -> list[Value]:
    """Return the readings of an answer: 50% is 1/2, and without `strict` also 50."""
    percent = _percent(text)
    number = None if percent is None else parse_number(percent)
    if number is None:
        return [parse_value(text, strict)]
    return [number / 100] if strict else [number, number / 100]


def _right_side(text: str, other: str) -> str:
    """Return the 5 of "x=5" when the other text has no left side."""
    match = _ASSIGNMENT.fullmatch(text)
    return match[2].strip() if match and not _ASSIGNMENT.fullmatch(other) else text


def _contradicts_itself(text: str) -> bool:
    """Return whether a chain of equations equates two numbers, as in "41=42"."""
    numbers = {parse_number(side) for side in text.split("=")} - {None}
    return len(numbers) > 1


def _comparable(gold: str, answer: str, strict: bool) -> bool:
    if strict:
        return sorted(_STRICT_MARK.findall(gold)) == sorted(_STRICT_MARK.findall(answer))
    return "=" in gold or not _contradicts_itself(answer)


def fast_equal(gold: str, answer: str, strict: bool = False) -> bool | None:
    r"""Return whether two mathematical answers are equal, as far as exact numbers and spelling decide it.

    True: the same text after `normalise_math`, or the same exact value of integers, decimals, fractions, mixed numbers,
    percentages, and tuples, intervals, sets and lists of them. False: two exact values or two words that differ.
    None: only algebra could tell (`symbolic_equal`). A rounded decimal is not the fraction (0.333 and 1/3: False).

    Args:
        gold: the correct answer, without its `\boxed{...}`.
        answer: the given one.
        strict: False (default) strips units ("5 cents" is 5), a left side ("x=5" is 5) and the case of words, and
            takes 50% for 50 or for 1/2. True wants the same relation, base, percent sign, unit and words on both
            sides.

    Returns:
        True, False or None. False for an answer of more than 2,000 characters that is not the gold itself.
    """
    if gold.strip() == answer.strip():
        return bool(gold.strip())
    if not answer.strip() or len(gold) > MAX_CHARACTERS or len(answer) > MAX_CHARACTERS:
        return False
    first, second = normalise_math(gold), normalise_math(answer)
    if first == second:
        return bool(first)
    if not _comparable(first, second, strict):
        return False
    if not strict:
        first, second = _right_side(first, second), _right_side(second, first)
    verdicts = [same_value(a, b, strict) for a in _forms(first, strict) for b in _forms(second, strict)]
    if True in verdicts:
        return True
    return None if None in verdicts else False

"""Text of models and of data on its way to a terminal. Standard library only."""

from __future__ import annotations

import re

__all__ = ["visible"]

# Control characters but for tab and line feed, half surrogate pairs, and the marks that turn the reading order round.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""Return a text in which what a terminal would obey is written out, such as `\x1b`."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)

"""The one sentence part that error messages share: the nearest right name."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return `", did you mean 'x'?"` for the option nearest to `name`, or an empty string when none is near."""
    near = get_close_matches(str(name), list(options), n=1)
    return f", did you mean {near[0]!r}?" if near else ""

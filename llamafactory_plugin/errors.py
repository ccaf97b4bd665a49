"""The error of a run that cannot work as written, and the nearest right name for a wrong one."""

import difflib
import sys
from collections.abc import Iterable
from types import TracebackType


class UsageError(ValueError):
    """A bad argument, dataset or combination: its text is one sentence that names the argument and the way out.

    Uncaught, it is shown without a traceback once `show_usage_errors_in_one_line` has run.
    """


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`"; did you mean X?"` for the closest of `candidates`, or an empty string when none is close."""
    by_folded = {str(candidate).casefold(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(str(name).casefold(), list(by_folded), n=1, cutoff=0.6)
    return f"; did you mean {by_folded[matches[0]]!r}?" if matches else ""


def show_usage_errors_in_one_line() -> None:
    """Let an uncaught `UsageError` end the process with its sentence alone; every other exception is untouched."""
    previous = sys.excepthook
    if getattr(previous, "shows_usage_errors", False):
        return

    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, UsageError):
            print(f"\nerror: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    excepthook.shows_usage_errors = True  # type: ignore[attr-defined]
    sys.excepthook = excepthook

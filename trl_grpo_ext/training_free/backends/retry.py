"""When to ask an endpoint again: back-off with full jitter, and what its headers say about limits. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# Time-outs, conflicts, rate limits; all of 5xx beside them.
RETRYABLE = frozenset({408, 409, 425, 429})
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)(ms|s|m|h|d)", re.ASCII)


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a request is tried. Raises ValueError for settings out of range.

    Args:
        attempts: requests in all, the first one included. The default waits 60 s on average, enough for a server that
            is started again.
        base: seconds; the first wait is below it, and each further limit is twice the one before.
        cap: seconds; no wait that we choose is longer.
        max_wait: seconds; a server that asks for more (`Retry-After`) gets no further attempt.
    """

    attempts: int = 10
    base: float = 0.5
    cap: float = 30.0
    max_wait: float = 120.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}; 1 asks once and never again.")
        for name in ("base", "cap", "max_wait"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite seconds, 0 or more, not {value}.")


def backoff(policy: RetryPolicy, attempt: int, uniform: float) -> float:
    """Return the seconds to wait after a failed attempt: uniform * min(cap, base * 2^(attempt - 1)), "full jitter".

    Args:
        policy: base and cap.
        attempt: 1 for the first.
        uniform: a random number in [0, 1).
    """
    return uniform * min(policy.cap, policy.base * 2.0 ** min(attempt - 1, 64))


def may_retry(status: int) -> bool:
    """Return whether a request that got this HTTP status may succeed later."""
    return status in RETRYABLE or 500 <= status < 600


def server_wait(headers: Mapping[str, str], now: datetime) -> float:
    """Return the seconds that a server asks to wait before the next request; 0 where it asks for nothing.

    `Retry-After` (seconds, or an HTTP date) and `retry-after-ms`; `x-ratelimit-reset-requests` and `-tokens` (or
    `x-ratelimit-reset`), each where its `x-ratelimit-remaining-...` is 0. What can't be read asks for nothing.

    Args:
        headers: of the response, by lower-case names or in a mapping that ignores case.
        now: with a time zone.
    """
    waits = [_retry_after(headers, now)]
    for kind in ("-requests", "-tokens", ""):
        if _number(headers.get(f"x-ratelimit-remaining{kind}", "")) == 0:
            waits.append(_reset(headers.get(f"x-ratelimit-reset{kind}", ""), now))
    return max(waits)


def duration(text: str) -> float | None:
    """Return the seconds of "2", "0.5s", "120ms" or "6m0s"; None for anything else."""
    text = text.strip()
    if _DURATION.sub("", text) == "" and text:
        return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))
    return _number(text)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\s*\d{1,15}(\.\d{1,15})?\s*", text, re.ASCII) else None


def _reset(text: str, now: datetime) -> float:
    seconds = duration(text) or 0.0
    # Some servers give the moment in Unix time.
    return max(0.0, seconds - now.timestamp()) if seconds > 1e9 else seconds


def _retry_after(headers: Mapping[str, str], now: datetime) -> float:
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after", "")
    seconds = duration(text)
    return _seconds_until(text, now) if seconds is None else seconds


def _seconds_until(date: str, now: datetime) -> float:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())

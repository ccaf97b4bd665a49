"""Server-sent events of a stream, passed on whole or not at all. Standard library only."""

from __future__ import annotations

import json
import re

_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_DONE = re.compile(rb"^data:\s*\[DONE\]\s*$", re.MULTILINE)
MAX_EVENT_BYTES = 16 * 2**20


class EventBuffer:
    """Holds back an event until it is whole: of a stream that breaks, a client sees no half one.

    Attributes:
        done: whether the stream's last event, `data: [DONE]`, has come.
    """

    def __init__(self) -> None:
        self.done = False
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return what is whole.

        Raises:
            ValueError: an event of more than MAX_EVENT_BYTES.
        """
        # A boundary may begin in the rest, up to three bytes before its end.
        start = max(0, len(self._rest) - 3)
        self._rest += data
        ends = [found.end() for found in _BOUNDARY.finditer(self._rest, start)]
        whole, self._rest = (self._rest[: ends[-1]], self._rest[ends[-1] :]) if ends else (b"", self._rest)
        self.done = self.done or bool(_DONE.search(whole))
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        return whole

    def end(self) -> bytes:
        """Return what is left of a stream that has ended well: its last event may lack the empty line."""
        if not _DONE.search(self._rest):
            return b""
        self.done = True
        return self._rest.rstrip() + b"\n\n"


def error_event(error: dict[str, object]) -> bytes:
    """Return an event that OpenAI's clients raise as an APIError."""
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"

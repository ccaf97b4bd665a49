"""Errors of the proxy, in the form of OpenAI's. Standard library only."""

from __future__ import annotations


class ProxyError(Exception):
    """What a client is answered.

    Args:
        status: of the HTTP response.
        message: for people.
        code: for programs.
    """

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    def error(self) -> dict[str, object]:
        """Return the value of "error" in the response's body."""
        kind = "upstream_error" if self.status in (502, 504) else "invalid_request_error"
        return {"message": self.message, "type": kind, "param": None, "code": self.code}

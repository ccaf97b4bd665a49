"""API keys that are sent and compared, and never shown. Standard library only."""

from __future__ import annotations

import hmac
import os


class Secret:
    """An API key that no `repr`, no log and no error shows.

    Args:
        value: the key; space around it is taken off.
        name: of the argument it came from, for the message.

    Raises:
        ValueError: a key that cannot stand in an HTTP header; the message does not hold it.
    """

    def __init__(self, value: str, name: str = "api_key") -> None:
        self._value = value.strip()
        if not self._value or not self._value.isascii() or not self._value.isprintable() or " " in self._value:
            raise ValueError(f"{name} must be printable ASCII without spaces; the one given is empty or is not.")

    @classmethod
    def from_environment(cls, variable: str, name: str = "api_key_env") -> Secret:
        """Return the key in an environment variable.

        Raises:
            ValueError: the variable is not there or is empty, or see above.
        """
        if not os.environ.get(variable):
            raise ValueError(f"{name}={variable!r}, but there is no such environment variable, or it is empty.")
        return cls(os.environ[variable], f"{variable} ({name})")

    def __repr__(self) -> str:
        return "Secret(***)"

    def headers(self) -> dict[str, str]:
        """Return the header that carries the key."""
        return {"Authorization": f"Bearer {self._value}"}

    def hidden(self, text: str) -> str:
        """Return a text with the key replaced by stars."""
        return text.replace(self._value, "***")

    def matches(self, authorization: str) -> bool:
        """Return whether an Authorization header carries this key, in a time that does not depend on the key."""
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._value.encode())
        return scheme.lower() == "bearer" and same

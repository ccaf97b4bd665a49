"""Settings of the proxy. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from trl_grpo_ext._secrets import Secret


@dataclass(frozen=True)
class ServeSettings:
    """Where the proxy forwards to, and whom it serves. Raises ValueError for settings that cannot work.

    Args:
        upstream: base URL of an OpenAI-compatible endpoint, up to and including the version.
        upstream_key: sent to the upstream. None passes the client's own Authorization header on, where clients need no
            key of the proxy.
        client_key: what clients must send as their API key; None asks for none.
        host: address to listen on. Beyond this machine, a proxy that holds an upstream key needs a client key.
        port: to listen on.
        max_body_bytes: of a request; larger ones are refused.
        timeout: seconds without a byte from the upstream before the request is given up.
        template: what surrounds the lessons, as in training, with `{experiences}` in their place; None: nothing.
    """

    upstream: str
    upstream_key: Secret | None = None
    client_key: Secret | None = None
    host: str = "127.0.0.1"
    port: int = 8100
    max_body_bytes: int = 4 * 2**20
    timeout: float = 600.0
    template: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.upstream)
        if parts.query or parts.fragment or "@" in self.upstream:
            raise ValueError("upstream must hold no user, password, query or fragment; a key goes into upstream_key.")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError(f"upstream must be like http://127.0.0.1:8000/v1, not {self.upstream!r}.")
        if self.max_body_bytes < 1 or not self.timeout > 0 or not 0 < self.port < 65536:
            raise ValueError(
                f"max_body_bytes, timeout and port must be above 0, not {self.max_body_bytes}, {self.timeout}, "
                f"{self.port}."
            )
        if self.template is not None and self.template.count("{experiences}") != 1:
            raise ValueError(
                f"template must hold {{experiences}} once, where the lessons go; it is {self.template!r}."
            )
        if self.upstream_key and not self.client_key and not _is_loopback(self.host):
            raise ValueError(
                f"host={self.host!r} can be reached by others, who would spend your upstream key: set client_key "
                "(--api-key-env), or listen on 127.0.0.1."
            )

    def url(self, path: str) -> str:
        """Return the upstream's address of a path."""
        return f"{self.upstream.rstrip('/')}/{path}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""POST of JSON with a deadline per attempt and bounded retries. Standard library only."""

import http.client
import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

MAX_RESPONSE_BYTES = 64 * 2**20
MAX_WAIT = 60.0
MAX_FAILURES = 3
# Worth another attempt: the server is busy, restarting, or behind a proxy that is.
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


class ServiceError(RuntimeError):
    """The service did not answer, answered with an error status, or answered something that is not JSON.

    Attributes:
        transient: whether another attempt may succeed.
        retry_after: seconds that the service asked to wait before it, 0.0 where it did not.
    """

    def __init__(self, message: str, transient: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.transient = transient
        self.retry_after = retry_after


@dataclass(frozen=True)
class Service:
    """Where and how to POST.

    Args:
        url: an http or https URL. Redirects are not followed and proxies not used.
        timeout: seconds for one attempt, from the connection to the last byte of the answer; 30 by default.
        retries: further attempts after a connection error, a timeout, or status 408, 425, 429, 500, 502, 503 or 504;
            3 by default. Other statuses are final.
        backoff: seconds to wait before the first retry, doubled each time, with up to half of it added at random;
            longer where the answer has a `Retry-After` in seconds; at most 60; 0.5 by default.
        headers: further request headers.
        token_variable: the environment variable with a token, sent as `Authorization: Bearer <token>`. It is read at
            each call, and so is not in a pickle of the reward.

    Raises:
        ValueError: not such a URL, or one with a user name or password (use `headers` or `token_variable`), `timeout`
            not above 0, `retries` not a whole number from 0, `backoff` below 0.
    """

    url: str
    timeout: float = 30.0
    retries: int = 3
    backoff: float = 0.5
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    token_variable: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        # First, and for what is no URL too: the other message repeats it.
        if "@" in (parts.netloc if parts.scheme in ("http", "https") else self.url):
            raise ValueError(
                f"url must not hold a user name or password (that of {parts.hostname} does); send them with `headers`, "
                "or a token with `token_variable`."
            )
        if parts.scheme not in ("http", "https") or not parts.hostname or _bad_port(parts):
            raise ValueError(f"url must be http://... or https://..., with a port up to 65535, not {self.shown!r}.")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, not {self.timeout!r}.")
        if not isinstance(self.retries, int) or self.retries < 0 or not self.backoff >= 0:
            raise ValueError(
                f"retries must be a whole number and backoff a number of seconds, both 0 or more, not {self.retries!r} "
                f"and {self.backoff!r}."
            )

    @property
    def shown(self) -> str:
        """The URL as messages have it: what follows the question mark may hold a key."""
        plain, mark, _ = self.url.partition("?")
        return f"{plain}?***" if mark else plain

    def __repr__(self) -> str:
        return f"Service(url={self.shown!r}, timeout={self.timeout!r}, token_variable={self.token_variable!r})"

    def post(self, payload: Any) -> Any:
        """POST `payload` as JSON and return the decoded answer.

        Raises:
            ServiceError: no attempt succeeded; the message has the URL without its query, the last cause and the number of attempts.
            TypeError, ValueError: `payload` can't be written as JSON.
        """
        body = json.dumps(payload, allow_nan=False).encode()
        for attempt in range(self.retries + 1):
            try:
                return _decoded(self.shown, *_exchange(self, body))
            except ServiceError as error:
                if not error.transient or attempt == self.retries:
                    message = f"{error} (attempt {attempt + 1} of {self.retries + 1})"
                    raise ServiceError(_without_secrets(message, self), error.transient) from None
                wait = self.backoff * 2**attempt * random.Random().uniform(1.0, 1.5)
                time.sleep(min(max(wait, error.retry_after), MAX_WAIT))
        raise AssertionError("unreachable: the last attempt returns or raises")


class Breaker:
    """A service for the requests of one reward call, not asked any more once it has failed too often in a row.

    Without it a service that is down costs each row of a call all its attempts: hours for a large batch. Thread safe.

    Args:
        service: the service. A request counts as failed when its last attempt was refused, timed out or met a busy
            server; other errors are the request's own.
        limit: failed requests in a row; 3 by default.
    """

    def __init__(self, service: Service, limit: int = MAX_FAILURES) -> None:
        self.service, self.limit = service, limit
        self._failures = 0
        self._lock = threading.Lock()

    @property
    def shown(self) -> str:
        """The service's URL, as messages have it."""
        return self.service.shown

    def post(self, payload: Any) -> Any:
        """POST by `Service.post`.

        Raises:
            ServiceError: as there, or because the service has failed too often.
        """
        if self._failures >= self.limit:
            raise ServiceError(f"{self.shown}: not asked, because {self._failures} requests of this call failed", True)
        try:
            answer = self.service.post(payload)
        except ServiceError as error:
            if error.transient:
                with self._lock:
                    self._failures += 1
            raise
        with self._lock:
            self._failures = 0
        return answer


def _bad_port(parts: SplitResult) -> bool:
    try:
        return parts.port == 0
    except ValueError:
        return True


def _request_headers(service: Service) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Accept": "application/json", **service.headers}
    if service.token_variable is None:
        return headers
    token = os.environ.get(service.token_variable)
    if not token:
        raise ServiceError(
            f"the environment variable {service.token_variable!r} for the token of {service.shown} is unset"
        )
    return headers | {"Authorization": f"Bearer {token}"}


def _connection(parts: SplitResult, timeout: float) -> http.client.HTTPConnection:
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=timeout)


@contextmanager
def _deadline(sock: socket.socket, seconds: float) -> Iterator[threading.Event]:
    """Shut the socket when the time is up: its own timeout starts anew with every byte that arrives."""
    passed = threading.Event()

    def shut() -> None:
        passed.set()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(seconds, 0.0), shut)
    timer.daemon = True
    timer.start()
    try:
        yield passed
    finally:
        timer.cancel()


def _seconds(retry_after: str | None) -> float:
    """Return a `Retry-After` in seconds; 0.0 without one and for its other form, a date."""
    return float(retry_after) if retry_after and retry_after.isdecimal() and len(retry_after) < 10 else 0.0


def _answer(service: Service, connection: http.client.HTTPConnection, body: bytes) -> tuple[int, bytes, float]:
    """Send the request and read status, body and the wait asked for within the deadline."""
    parts, start = urlsplit(service.url), time.monotonic()
    headers = _request_headers(service)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.connect()
    # The connection forgets its socket when the server announces that it will close it; the deadline must not.
    with _deadline(connection.sock, service.timeout - (time.monotonic() - start)) as passed:
        try:
            connection.request("POST", target, body, headers)
            response = connection.getresponse()
            wait = _seconds(response.getheader("Retry-After"))
            answer = response.status, response.read(MAX_RESPONSE_BYTES + 1), wait
        except (OSError, http.client.HTTPException) as error:
            raise TimeoutError if passed.is_set() else error from error
        # A body without a length, cut off by the deadline, reads as a shorter one.
        if passed.is_set():
            raise TimeoutError
        return answer


def _exchange(service: Service, body: bytes) -> tuple[int, bytes, float]:
    """Make one attempt; every failure of the connection is a transient `ServiceError`."""
    connection = _connection(urlsplit(service.url), service.timeout)
    try:
        return _answer(service, connection, body)
    except TimeoutError as error:
        raise ServiceError(f"{service.shown}: no answer within {service.timeout} s", transient=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise ServiceError(f"{service.shown}: {type(error).__name__}: {error}", transient=True) from error
    finally:
        connection.close()


def _without_secrets(text: str, service: Service) -> str:
    """A message without the token and the headers' values: a server may repeat in its answer what it was sent."""
    token = os.environ.get(service.token_variable or "", "")
    for secret in (token, *service.headers.values()):
        # Shorter ones are words, such as a version.
        text = text.replace(secret, "***") if len(secret) >= 8 else text
    return text


def _decoded(url: str, status: int, body: bytes, wait: float) -> Any:
    start = body[:200].decode("utf-8", errors="replace")
    if not 200 <= status < 300:
        raise ServiceError(f"{url}: status {status}: {start!r}", transient=status in _TRANSIENT, retry_after=wait)
    if len(body) > MAX_RESPONSE_BYTES:
        raise ServiceError(f"{url}: the answer has more than {MAX_RESPONSE_BYTES} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServiceError(f"{url}: the answer is not JSON: {start!r}") from error

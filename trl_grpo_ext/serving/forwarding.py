"""Requests passed on to the upstream, and its answers passed back: whole, or event by event."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from trl_grpo_ext.serving.errors import ProxyError
from trl_grpo_ext.serving.events import EventBuffer, error_event
from trl_grpo_ext.serving.settings import ServeSettings

logger = logging.getLogger("trl_grpo_ext.serving")

_PASSED_ON = ("openai-organization", "openai-project")
_PASSED_BACK = ("content-type", "retry-after", "retry-after-ms", "x-request-id")
_PASSED_BACK_PREFIX = "x-ratelimit-"


class Upstream:
    """The endpoint behind the proxy.

    Args:
        settings: of the proxy.
        client: the connections.
    """

    def __init__(self, settings: ServeSettings, client: httpx.AsyncClient) -> None:
        self.settings, self.client = settings, client

    async def get(self, path: str, request: Request) -> Response:
        """Pass on a GET.

        Raises:
            ProxyError: 502 or 504, the upstream is not there, or does not answer.
        """
        response = await self._send("GET", path, self._headers(request), None)
        return await self._whole(response, {})

    async def post(self, path: str, request: Request, data: dict[str, Any], extra: Mapping[str, str]) -> Response:
        """Pass on a POST; a stream of events comes back as such.

        Args:
            path: below the upstream's base URL.
            request: of the client.
            data: the body.
            extra: headers of the proxy's own to send back.

        Raises:
            ProxyError: 502 or 504, the upstream is not there, breaks off before the answer, or does not answer.
        """
        headers = {**self._headers(request), "content-type": "application/json"}
        response = await self._send("POST", path, headers, json.dumps(data).encode())
        kind = response.headers.get("content-type", "")
        if response.status_code != 200 or not kind.startswith("text/event-stream"):
            return await self._whole(response, extra)
        return StreamingResponse(self._events(response), headers={**_passed_back(response), **extra})

    def _headers(self, request: Request) -> dict[str, str]:
        found = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        if self.settings.upstream_key:
            found |= self.settings.upstream_key.headers()
        elif not self.settings.client_key and "authorization" in request.headers:
            found["authorization"] = request.headers["authorization"]
        return found | {"accept-encoding": "identity"}

    async def _send(self, method: str, path: str, headers: dict[str, str], content: bytes | None) -> httpx.Response:
        request = self.client.build_request(method, self.settings.url(path), headers=headers, content=content)
        try:
            return await self.client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise self._failed(error) from None

    async def _whole(self, response: httpx.Response, extra: Mapping[str, str]) -> Response:
        try:
            content = await response.aread()
        except httpx.HTTPError as error:
            raise self._failed(error) from None
        finally:
            await response.aclose()
        if response.status_code != 200 and self.settings.upstream_key:
            # Some servers quote the key that they refuse, and it is not the client's.
            text = content.decode("utf-8", errors="replace")
            content = self.settings.upstream_key.hidden(text).encode()
        return Response(content, response.status_code, headers={**_passed_back(response), **extra})

    async def _events(self, response: httpx.Response) -> AsyncIterator[bytes]:
        buffer = EventBuffer()
        try:
            async for part in response.aiter_bytes():
                if whole := buffer.feed(part):
                    yield whole
            if last := buffer.end():
                yield last
            if not buffer.done:
                raise httpx.RemoteProtocolError("the stream ended before its end")
        except (httpx.HTTPError, ValueError) as error:
            yield error_event(self._failed(error).error())
        finally:
            await response.aclose()

    def _failed(self, error: Exception) -> ProxyError:
        kind = type(error).__name__
        logger.warning("the upstream failed: %s", kind)
        if isinstance(error, httpx.TimeoutException):
            return ProxyError(504, f"The upstream did not answer in time ({kind}).", "upstream_timeout")
        if isinstance(error, httpx.ConnectError):
            return ProxyError(502, f"The upstream can't be reached ({kind}).", "upstream_unreachable")
        return ProxyError(502, f"The upstream broke off its answer ({kind}).", "upstream_broke_off")


def _passed_back(response: httpx.Response) -> dict[str, str]:
    return {
        name: value
        for name, value in response.headers.items()
        if name in _PASSED_BACK or name.startswith(_PASSED_BACK_PREFIX)
    }

"""What a client sent: its key, its body, its chat request."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request

from trl_grpo_ext.serving.errors import ProxyError
from trl_grpo_ext.serving.settings import ServeSettings

# Of a body that is too large, this much is read and thrown away: a client that is still sending reads no answer.
_DRAINED_BYTES = 64 * 2**20


def check_key(request: Request, settings: ServeSettings) -> None:
    """Refuse a client without the key.

    Raises:
        ProxyError: 401.
    """
    if settings.client_key and not settings.client_key.matches(request.headers.get("authorization", "")):
        raise ProxyError(401, "The API key is missing or wrong.", "invalid_api_key")


async def read_body(request: Request, most: int) -> bytes:
    """Return the body.

    Raises:
        ProxyError: 413, a body of more than `most` bytes.
    """
    announced = request.headers.get("content-length", "")
    parts, size = [], 0
    if not announced.isdigit() or int(announced) <= _DRAINED_BYTES:
        async for part in request.stream():
            size += len(part)
            if size <= most:
                parts.append(part)
            elif size > _DRAINED_BYTES:
                break
    if size > most or (announced.isdigit() and int(announced) > most):
        raise ProxyError(413, f"The request's body is larger than {most} bytes.", "request_too_large")
    return b"".join(parts)


def chat_request(body: bytes) -> dict[str, Any]:
    """Return the body of a chat request as a dictionary.

    Raises:
        ProxyError: 400, no JSON object, or no messages in it.
    """
    try:
        data = json.loads(body, parse_constant=_refused)
    except (ValueError, RecursionError):
        raise ProxyError(400, "The request's body is no JSON.", "invalid_json") from None
    messages = data.get("messages") if isinstance(data, dict) else None
    if not isinstance(messages, list) or not messages or not all(_is_message(item) for item in messages):
        raise ProxyError(400, "messages must be a list of at least one object with a role.", "invalid_messages")
    return data


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("role"), str)


def _refused(constant: str) -> Any:
    raise ValueError(constant)

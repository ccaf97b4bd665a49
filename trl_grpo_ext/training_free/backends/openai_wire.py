"""What goes to an OpenAI-compatible endpoint, and what comes back. Pure functions; standard library only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trl_grpo_ext.training_free.backends.seeds import sampling_seed
from trl_grpo_ext.training_free.protocol import BackendError, ChatReply, ChatRequest

# What a request says by itself; an extra body may not say it again.
OWN_FIELDS = frozenset({"messages", "model", "n", "seed", "stream", "temperature"})
_BYTES_PER_TOKEN = 3
_SHOWN = 300


def prompt_cache_order(requests: Sequence[ChatRequest]) -> list[int]:
    """Return the indices with equal prompts in a row, and prompts with an equal first message in a row.

    Servers keep the work of the last prompts, by prefix. The first message as a rule holds the lessons. Otherwise the
    order of the requests is kept.
    """
    first: dict[tuple[tuple[str, str], ...], int] = {}
    for index, request in enumerate(requests):
        for part in (request.messages[:1], request.messages):
            first.setdefault(part, index)
    return sorted(
        range(len(requests)),
        key=lambda index: (first[requests[index].messages[:1]], first[requests[index].messages], index),
    )


def request_body(
    request: ChatRequest, model: str, limit_field: str = "max_tokens", extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the body of POST /chat/completions.

    Args:
        request: what is asked.
        model: the endpoint's name of the model.
        limit_field: "max_tokens", or "max_completion_tokens", which newer models of OpenAI want.
        extra: further fields.
    """
    own = {"model": model, "messages": request.as_messages(), "temperature": request.temperature}
    return {**own, limit_field: request.max_tokens, "seed": sampling_seed(request), **(extra or {})}


def read_reply(content: bytes, request: ChatRequest) -> ChatReply:
    """Return the reply of a response's body.

    Where the server counts no tokens, a token is taken for three bytes, so that budgets still end.

    Raises:
        BackendError: no JSON, or not of the form of a chat completion; retryable.
    """
    try:
        data = json.loads(content)
        choice = data["choices"][0]
        text, finish = _text(choice["message"].get("content")), choice.get("finish_reason")
        usage = data.get("usage") or {}
        prompt = "".join(text for _, text in request.messages)
        counts = (_count(usage, "prompt_tokens", prompt), _count(usage, "completion_tokens", text))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BackendError(f"the answer is no chat completion ({type(error).__name__}): {shown(content)}") from None
    return ChatReply(text, *counts, "length" if finish == "length" else "stop")


def error_message(status: int, content: bytes) -> tuple[str, str]:
    """Return the text and the code of an error response; of one without JSON, its beginning and ""."""
    try:
        data = json.loads(content)
        error = data.get("error", data)
        text = error if isinstance(error, str) else error.get("message") or error.get("detail") or data.get("detail")
        code = "" if isinstance(error, str) else str(error.get("code") or "")
    except (ValueError, AttributeError, RecursionError):
        text, code = None, ""
    return f"HTTP status {status}: {str(text)[:_SHOWN] if text else shown(content)}", code


def shown(content: bytes) -> str:
    """Return the beginning of a body, for an error message."""
    return repr(content[:_SHOWN].decode("utf-8", errors="replace"))


def _text(content: Any) -> str:
    if isinstance(content, list):
        content = "".join(block["text"] for block in content if block.get("type") == "text")
    if not isinstance(content, str | None):
        raise TypeError("content is no text")
    # Half a surrogate pair is legal JSON, but no store takes it.
    return (content or "").encode("utf-8", errors="replace").decode("utf-8")


def _count(usage: Mapping[str, Any], name: str, text: str) -> int:
    value = usage.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return math.ceil(len(text.encode("utf-8", errors="replace")) / _BYTES_PER_TOKEN)

"""Any OpenAI-compatible endpoint: OpenAI, `vllm serve`, `llamafactory-cli api`, SGLang, Ollama, ... Needs httpx."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from trl_grpo_ext._secrets import Secret
from trl_grpo_ext.training_free.backends.background import deliver_here
from trl_grpo_ext.training_free.backends.openai_wire import OWN_FIELDS
from trl_grpo_ext.training_free.backends.retry import RetryPolicy
from trl_grpo_ext.training_free.protocol import ChatRequest, OnReply

LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")


class OpenAIBackend:
    """Answers requests by POST {base_url}/chat/completions, many at a time, trying again what may succeed later.

    Each request becomes one call with n = 1; requests with equal prompts are sent in a row, for the server's prompt
    cache. Rate limits that the server tells pause all requests. A wrong key or an unknown model ends all requests that
    have not been sent. The key is in no error, log or `repr`. A seed is sent; an endpoint that ignores it, as
    LLaMA-Factory's does, answers differently each time.

    Args:
        base_url: up to and including the version, like "http://127.0.0.1:8000/v1".
        model: the endpoint's name of the model.
        api_key: sent as a bearer token; None sends none.
        api_key_env: name of an environment variable that holds the key, in place of `api_key`.
        concurrency: requests under way at a time, per call of `complete`.
        timeout: seconds that one attempt may take in all.
        retry: when to try again.
        extra_body: further fields of each request, such as {"top_p": 0.95}.
        limit_field: the field for the token limit: "max_tokens" or "max_completion_tokens".
        label: stands for base_url and model in `name`. Endpoints with one label share their cached answers: give it
            where a server that serves the same model may move.

    Raises:
        ImportError: httpx is not installed.
        ValueError: an argument that cannot work.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        api_key_env: str | None = None,
        concurrency: int = 16,
        timeout: float = 300.0,
        retry: RetryPolicy | None = None,
        extra_body: Mapping[str, Any] | None = None,
        limit_field: str = "max_tokens",
        label: str | None = None,
    ) -> None:
        _check_httpx()
        self.url, self.model = f"{_checked_url(base_url)}/chat/completions", model
        self.secret = _secret(api_key, api_key_env)
        self.concurrency, self.timeout, self.retry = concurrency, timeout, retry or RetryPolicy()
        self.extra_body, self.limit_field = dict(extra_body or {}), limit_field
        _check_settings(self)
        self.name = ":".join(["openai", *([label] if label else [_checked_url(base_url), model])])
        if self.extra_body:
            self.name += ":" + json.dumps(self.extra_body, sort_keys=True)

    def __repr__(self) -> str:
        return f"OpenAIBackend(url={self.url!r}, model={self.model!r}, concurrency={self.concurrency})"

    def complete(self, requests: Sequence[ChatRequest], on_reply: OnReply) -> None:
        """Answer all requests; see `protocol.Backend`.

        A call that fails for good becomes a BackendError, whose `retryable` says whether its last failure was of a
        kind that may pass.
        """
        if not requests:
            return
        from trl_grpo_ext.training_free.backends.openai_session import answer_all

        deliver_here(partial(answer_all, self, requests), lambda answered: on_reply(*answered))


def _check_httpx() -> None:
    try:
        import httpx  # noqa: F401
    except ImportError:
        raise ImportError(
            "an OpenAI-compatible endpoint needs httpx: pip install 'trl-grpo-ext[endpoint]'.", name="httpx"
        ) from None


def _checked_url(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.query or parts.fragment or "@" in base_url:
        raise ValueError("base_url must hold no user, password, query or fragment; a key goes into api_key.")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(f"base_url must be like http://127.0.0.1:8000/v1, not {base_url!r}.")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise ValueError(f"base_url ends before /chat/completions, which is added; it is {base_url!r}.")
    return base_url.rstrip("/")


def _secret(api_key: str | None, variable: str | None) -> Secret | None:
    if variable is None:
        return None if api_key is None else Secret(api_key)
    if api_key is not None:
        raise ValueError("api_key and api_key_env are both given; give one of them.")
    return Secret.from_environment(variable)


def _check_settings(backend: OpenAIBackend) -> None:
    if backend.concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {backend.concurrency}.")
    if not backend.timeout > 0:
        raise ValueError(f"timeout must be seconds above 0, not {backend.timeout}.")
    if backend.limit_field not in LIMIT_FIELDS:
        raise ValueError(f"limit_field must be one of {', '.join(LIMIT_FIELDS)}, not {backend.limit_field!r}.")
    own = sorted(backend.extra_body.keys() & (OWN_FIELDS | set(LIMIT_FIELDS)))
    if own:
        raise ValueError(f"extra_body may not hold {', '.join(own)}: each request says that by itself.")

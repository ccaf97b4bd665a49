"""One call of `OpenAIBackend.complete`: a pool of workers on one HTTP client, with retries and a common pause."""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

import httpx

from trl_grpo_ext.training_free.backends.openai_wire import error_message, prompt_cache_order, read_reply, request_body
from trl_grpo_ext.training_free.backends.retry import backoff, may_retry, server_wait
from trl_grpo_ext.training_free.protocol import BackendError, ChatReply, ChatRequest

if TYPE_CHECKING:
    from trl_grpo_ext.training_free.backends.openai_backend import OpenAIBackend

Answer: TypeAlias = ChatReply | BackendError
Put: TypeAlias = Callable[[tuple[int, Answer]], None]

# What is true of all requests: a wrong key, a wrong address or an unknown model, no money left.
_FATAL_STATUS = frozenset({401, 404, 405})
_FATAL_CODES = frozenset({"insufficient_quota", "invalid_api_key", "model_not_found"})


async def answer_all(backend: OpenAIBackend, requests: Sequence[ChatRequest], put: Put) -> None:
    """Put (index, reply or error) of every request, as each is done."""
    waiting = deque(prompt_cache_order(requests))
    limits = httpx.Limits(max_connections=backend.concurrency)
    headers = {"Content-Type": "application/json", **(backend.secret.headers() if backend.secret else {})}
    # The attempt as a whole has a time limit; httpx's are per read, and a slow drip would outlive them.
    async with httpx.AsyncClient(limits=limits, timeout=None, headers=headers) as client:
        session = _Session(backend, client)

        async def work() -> None:
            while waiting:
                index = waiting.popleft()
                put((index, await session.answer(requests[index])))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(backend.concurrency, len(requests))):
                group.create_task(work())


class _Session:
    def __init__(self, backend: OpenAIBackend, client: httpx.AsyncClient) -> None:
        self.backend, self.client = backend, client
        self.fatal: BackendError | None = None
        self.paused_until = 0.0

    async def answer(self, request: ChatRequest) -> Answer:
        retry, attempt = self.backend.retry, 0
        while self.fatal is None:
            await self._pause_over()
            attempt += 1
            answer, wait = await self._attempt(request)
            if isinstance(answer, ChatReply) or not answer.retryable:
                return answer
            if attempt >= retry.attempts or wait > retry.max_wait:
                why = (
                    f"after {attempt} attempts" if wait <= retry.max_wait else f"the server asks to wait {wait:.0f} s"
                )
                return BackendError(f"{answer} ({why})")
            await asyncio.sleep(backoff(retry, attempt, random.random()))
        return self.fatal

    async def _pause_over(self) -> None:
        now = asyncio.get_running_loop().time
        while (left := self.paused_until - now()) > 0:
            # Not all at once when it is over.
            await asyncio.sleep(left * (1 + random.random() / 10))

    async def _attempt(self, request: ChatRequest) -> tuple[Answer, float]:
        """The answer to one POST, and the seconds that the server asks to wait."""
        backend = self.backend
        body = request_body(request, backend.model, backend.limit_field, backend.extra_body)
        try:
            async with asyncio.timeout(backend.timeout):
                # Escaped, so that half a surrogate pair in a data set's text can be sent.
                response = await self.client.post(backend.url, content=json.dumps(body))
        except TimeoutError:
            return self._error(f"no answer within {backend.timeout:g} s"), 0.0
        except httpx.HTTPError as error:
            return self._error(f"{type(error).__name__}: {error}"), 0.0
        wait = server_wait(response.headers, datetime.now(UTC))
        if 0 < wait <= backend.retry.max_wait:
            self.paused_until = max(self.paused_until, asyncio.get_running_loop().time() + wait)
        return self._read(response, request), wait

    def _read(self, response: httpx.Response, request: ChatRequest) -> Answer:
        if response.status_code == 200:
            try:
                return read_reply(response.content, request)
            except BackendError as malformed:
                return self._error(str(malformed))
        text, code = error_message(response.status_code, response.content)
        fatal = response.status_code in _FATAL_STATUS or code in _FATAL_CODES
        error = self._error(text, may_retry(response.status_code) and not fatal)
        self.fatal = error if fatal else self.fatal
        return error

    def _error(self, text: str, retryable: bool = True) -> BackendError:
        text = f"{self.backend.url}: {text}"
        return BackendError(self.backend.secret.hidden(text) if self.backend.secret else text, retryable)

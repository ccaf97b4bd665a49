"""A backend that is a Python function: for tests, simulations and dry runs. Standard library only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from threading import Lock
from typing import TypeAlias

from trl_grpo_ext.training_free.protocol import BackendError, ChatReply, ChatRequest, OnReply

Script: TypeAlias = Callable[[ChatRequest, int], str | ChatReply]
"""Answers a request, given how often it was asked before; raises BackendError for a failed call."""


class ScriptedBackend:
    """Answers by a function, from several threads at once.

    Args:
        script: a function of the request, and of how often this backend was asked it before. What it raises other than
            BackendError is raised by `complete`.
        name: of the model.
        concurrency: threads; 1 answers in order, in the caller's thread.

    Attributes:
        asked: how often each request was asked.
        calls: all calls.

    Raises:
        ValueError: a concurrency below 1.
    """

    def __init__(self, script: Script, name: str = "scripted", concurrency: int = 1) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency!r}.")
        self.name = name
        self.asked: Counter[ChatRequest] = Counter()
        self._script, self._concurrency, self._lock = script, concurrency, Lock()

    @property
    def calls(self) -> int:
        """All calls so far, failed ones included."""
        return sum(self.asked.values())

    def complete(self, requests: Sequence[ChatRequest], on_reply: OnReply) -> None:
        """See `Backend.complete`."""
        if self._concurrency == 1:
            for index, request in enumerate(requests):
                on_reply(index, self._answer(request))
            return
        with ThreadPoolExecutor(self._concurrency) as pool:
            futures = {pool.submit(self._answer, request): index for index, request in enumerate(requests)}
            self._hand_over(futures, on_reply)

    def _hand_over(self, futures: dict[Future[ChatReply | BackendError], int], on_reply: OnReply) -> None:
        try:
            for future in as_completed(futures):
                on_reply(futures[future], future.result())
        finally:
            for future in futures:
                future.cancel()

    def _count(self, request: ChatRequest) -> int:
        with self._lock:
            self.asked[request] += 1
            return self.asked[request] - 1

    def _answer(self, request: ChatRequest) -> ChatReply | BackendError:
        try:
            answer = self._script(request, self._count(request))
        except BackendError as error:
            return error
        if isinstance(answer, ChatReply):
            return answer
        prompt = sum(len(content.split()) for _, content in request.messages)
        return ChatReply(answer, prompt, len(answer.split()), "stop")

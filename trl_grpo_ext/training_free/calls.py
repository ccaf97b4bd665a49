"""Calls of a model that are cached, counted against the budget, and made again when they fail in passing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

from trl_grpo_ext.training_free.budget import BudgetReached, Meter
from trl_grpo_ext.training_free.cache import CallCache, request_key
from trl_grpo_ext.training_free.protocol import Backend, BackendError, ChatReply, ChatRequest

Outcome: TypeAlias = ChatReply | BackendError


def derived_seed(*parts: object) -> int:
    """Return a seed of 31 bits that is a function of the parts alone."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class Caller:
    """One model, as the loop calls it.

    Args:
        backend: the model.
        cache: where replies are kept; a request that was answered before costs nothing.
        meter: what counts the costs.
        max_attempts: how often a call is made that fails with a retryable error.
        on_call: called after each reply or failure, for progress displays.
    """

    def __init__(
        self,
        backend: Backend,
        cache: CallCache,
        meter: Meter,
        max_attempts: int,
        on_call: Callable[[], None] = lambda: None,
    ) -> None:
        self.backend, self.name = backend, backend.name
        self._cache, self._meter, self._attempts, self._on_call = cache, meter, max_attempts, on_call

    def complete(self, requests: Sequence[ChatRequest]) -> list[Outcome]:
        """Return the reply to each request, or the error of its last attempt.

        Equal requests are one call. What arrived is in the cache, whatever is raised.

        Raises:
            BudgetReached: a limit was reached before all requests were answered.
        """
        keys = [request_key(self.name, request) for request in requests]
        wanted = dict(zip(keys, requests, strict=True))
        found: dict[str, Outcome] = {}
        for key in wanted:
            known = self._cache.get(key)
            if known is not None:
                found[key] = known
        open_keys = [key for key in wanted if key not in found]
        for _ in range(self._attempts):
            if not open_keys:
                break
            self._ask(open_keys, wanted, found)
            open_keys = [key for key in open_keys if _try_again(found[key])]
        return [found[key] for key in keys]

    def _ask(self, keys: Sequence[str], wanted: dict[str, ChatRequest], found: dict[str, Outcome]) -> None:
        self._meter.check()
        left = self._meter.calls_left()
        now = list(keys if left is None else keys[:left])

        def on_reply(index: int, outcome: Outcome) -> None:
            self._take(now[index], outcome, found)

        if now:
            self.backend.complete([wanted[key] for key in now], on_reply)
        if len(now) < len(keys):
            raise BudgetReached(f"max_calls={self._meter.budget.max_calls}")
        for key in now:
            if key not in found:
                found[key] = BackendError(f"{self.name} returned without an answer to a request.", retryable=False)

    def _take(self, key: str, outcome: Outcome, found: dict[str, Outcome]) -> None:
        if isinstance(outcome, ChatReply):
            found[key] = self._cache.put(key, self.name, outcome)
            self._meter.add(self.name, outcome.prompt_tokens, outcome.completion_tokens)
        else:
            found[key] = outcome
            self._cache.add_failure(self.name, str(outcome))
            self._meter.add_failure()
        self._on_call()
        self._meter.check()


def _try_again(outcome: Outcome) -> bool:
    return isinstance(outcome, BackendError) and outcome.retryable

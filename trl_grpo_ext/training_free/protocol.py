"""What the loop asks of a model, and how a model answers. Standard library only.

A backend is any object with a `name` and a method `complete`: a local model, an engine, an endpoint, a script.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Message: TypeAlias = dict[str, str]
"""`{"role": ..., "content": ...}`."""


@dataclass(frozen=True)
class ChatRequest:
    """One completion that is asked for.

    Args:
        messages: (role, content) pairs; hashable.
        temperature: of the sampling; 0 is greedy.
        max_tokens: the most tokens of the completion.
        seed: of the sampling, where the model takes one; requests that differ by it only are independent samples.
    """

    messages: tuple[tuple[str, str], ...]
    temperature: float = 1.0
    max_tokens: int = 512
    seed: int = 0

    def as_messages(self) -> list[Message]:
        """Return the messages as dictionaries, as chat templates and endpoints take them."""
        return [{"role": role, "content": content} for role, content in self.messages]


@dataclass(frozen=True)
class ChatReply:
    """One completion.

    Args:
        text: what the model said.
        prompt_tokens: tokens of the prompt, as the model counts them.
        completion_tokens: tokens of the completion.
        finish_reason: "stop", or "length" where `max_tokens` cut it.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str


class BackendError(RuntimeError):
    """What a failed call becomes.

    Args:
        message: what failed, and the way out.
        retryable: whether the same request may succeed later (a time-out, a rate limit), or never will.
    """

    def __init__(self, message: str, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


OnReply: TypeAlias = Callable[[int, ChatReply | BackendError], None]


class Backend(Protocol):
    """A model that answers requests.

    Attributes:
        name: the model and those settings that change what it answers; part of cache keys and of a run's fingerprint.
    """

    name: str

    def complete(self, requests: Sequence[ChatRequest], on_reply: OnReply) -> None:
        """Answer all requests.

        Args:
            requests: what to answer.
            on_reply: called as `on_reply(index, reply or error)` in the caller's thread as each is done, in any
                order, once per request. What it raises cancels what is under way and is raised to the caller.
        """

"""From what a user names to a backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trl_grpo_ext.training_free.protocol import Backend, BackendError, ChatReply, ChatRequest


def as_backend(model: Any, argument: str = "base_model", tokenizer: Any = None) -> Backend:
    """Return a backend as it is, and a `TransformersBackend` of a model, or of a folder that holds one.

    Args:
        model: a backend, a model of transformers, or a folder.
        argument: its name, for messages.
        tokenizer: of a model that is handed over as an object.

    Raises:
        TypeError: something else, or a tokenizer beside a backend.
        ValueError: a model object without a tokenizer.
        FileNotFoundError: there is no such folder.
    """
    if isinstance(getattr(model, "name", None), str) and callable(getattr(model, "complete", None)):
        if tokenizer is not None:
            raise TypeError(
                f"tokenizer belongs to a model of transformers, and {argument} is a backend; leave it out."
            )
        return model
    if isinstance(model, str | Path) or callable(getattr(model, "generate", None)):
        from trl_grpo_ext.training_free.backends import TransformersBackend

        return TransformersBackend(model, tokenizer)
    raise TypeError(
        f"{argument} must be a model of transformers, a folder that holds one, or a backend of "
        f"trl_grpo_ext.training_free.backends (with a name and a method complete), not {type(model).__name__}."
    )


def answer(backend: Backend, request: ChatRequest) -> ChatReply:
    """Return the reply to one request.

    Raises:
        BackendError: the call failed.
    """
    found: list[ChatReply | BackendError] = []
    backend.complete([request], lambda index, outcome: found.append(outcome))
    outcome = found[0] if found else BackendError(f"{backend.name} returned without an answer.", retryable=False)
    if isinstance(outcome, BackendError):
        raise outcome
    return outcome

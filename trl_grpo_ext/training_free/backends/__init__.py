"""Models that answer the loop's requests. Each is loaded, with what it needs, when it is first used (PEP 562)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trl_grpo_ext.training_free.backends.scripted import ScriptedBackend

if TYPE_CHECKING:
    from trl_grpo_ext.training_free.backends.openai_backend import OpenAIBackend
    from trl_grpo_ext.training_free.backends.retry import RetryPolicy
    from trl_grpo_ext.training_free.backends.transformers_backend import TransformersBackend
    from trl_grpo_ext.training_free.backends.vllm_backend import VLLMBackend

_HOME = {
    "OpenAIBackend": "openai_backend",
    "RetryPolicy": "retry",
    "TransformersBackend": "transformers_backend",
    "VLLMBackend": "vllm_backend",
}

__all__ = ["OpenAIBackend", "RetryPolicy", "ScriptedBackend", "TransformersBackend", "VLLMBackend"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__

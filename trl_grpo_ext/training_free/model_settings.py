"""Models as a file describes them: checked without loading anything, loaded when a run begins."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

from trl_grpo_ext.training_free.protocol import Backend
from trl_grpo_ext.training_free.typed_values import checked_values


@dataclass(frozen=True)
class LocalModel:
    """A folder with a model of transformers, in this process; see `TransformersBackend` for the settings."""

    model: str
    batch_tokens: int = 16384
    device: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def check(self, where: str) -> None:
        """Refuse what can't be loaded.

        Raises:
            ValueError: no such folder, no model in it, or a setting out of range.
        """
        _check_folder(self.model, where)
        if self.batch_tokens < 1:
            raise ValueError(f"{where}.batch_tokens must be at least 1, not {self.batch_tokens}.")

    @property
    def name(self) -> str:
        """What is known of the backend's name: the family of the model, without the hash of its weights."""
        config = json.loads((Path(self.model) / "config.json").read_text(encoding="utf-8"))
        return f"transformers:{config.get('model_type', '')}:"

    def load(self) -> Backend:
        """Load it."""
        from trl_grpo_ext.training_free.backends import TransformersBackend

        options: dict[str, Any] = {"device": self.device, "chat_template_kwargs": self.chat_template_kwargs}
        return TransformersBackend(self.model, batch_tokens=self.batch_tokens, **options)


@dataclass(frozen=True)
class VLLMModel:
    """A folder with a model for vLLM, in this process; see `VLLMBackend`. `engine`: options of `vllm.LLM`."""

    model: str
    slice_size: int = 256
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)

    def check(self, where: str) -> None:
        """Refuse what can't be loaded.

        Raises:
            ValueError: no such folder, a setting out of range, or no vLLM.
        """
        _check_folder(self.model, where)
        if self.slice_size < 1:
            raise ValueError(f"{where}.slice_size must be at least 1, not {self.slice_size}.")
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(
                f"{where}.backend is vllm, which is not installed: pip install 'trl-grpo-ext[vllm]' (docs/install.md), or "
                "serve the model by `vllm serve` and give its base_url."
            )

    @property
    def name(self) -> str:
        """The backend's name, but for the settings of its template."""
        return f"vllm:{self.label or self.model}"

    def load(self) -> Backend:
        """Load it."""
        from trl_grpo_ext.training_free.backends import VLLMBackend

        options: dict[str, Any] = {"slice_size": self.slice_size, "chat_template_kwargs": self.chat_template_kwargs}
        return VLLMBackend(self.model, label=self.label, **options, **self.engine)


@dataclass(frozen=True)
class EndpointModel:
    """An OpenAI-compatible endpoint; see `OpenAIBackend`. `retry`: attempts, base, cap and max_wait of `RetryPolicy`."""

    base_url: str
    model: str
    api_key_env: str | None = None
    concurrency: int = 16
    timeout: float = 300.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    limit_field: str = "max_tokens"
    label: str | None = None
    retry: Mapping[str, Any] = field(default_factory=dict)

    def check(self, where: str) -> None:
        """Refuse what can't be asked; nothing is asked.

        Raises:
            ValueError: a setting out of range, or a key that is not in the environment.
            ImportError: httpx is not installed.
        """
        from trl_grpo_ext.training_free.backends import RetryPolicy

        checked_values(RetryPolicy, self.retry, f"{where}.retry")
        try:
            self.load()
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.load().name

    def load(self) -> Backend:
        """Return the endpoint's backend."""
        from trl_grpo_ext.training_free.backends import OpenAIBackend, RetryPolicy

        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return OpenAIBackend(**values | {"retry": RetryPolicy(**self.retry)})


ModelSettings: TypeAlias = LocalModel | VLLMModel | EndpointModel

BACKENDS: dict[str, type[ModelSettings]] = {"transformers": LocalModel, "openai": EndpointModel, "vllm": VLLMModel}


def model_settings(values: Any, where: str, folder: Path) -> ModelSettings:
    """Return a model's settings, checked.

    Args:
        values: a folder, or a mapping with `backend` (transformers, openai or vllm; openai where there is a base_url, else
            transformers) and the settings of that backend.
        where: "policy" or "reflector", for messages.
        folder: where a relative folder is looked up first, before the working directory.

    Raises:
        ValueError: naming the key.
    """
    given = {"model": values} if isinstance(values, str) else values
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} must be a folder, or a mapping with backend, model, base_url, ..., not {values!r}.")
    kind = given.get("backend", "openai" if "base_url" in given else "transformers")
    if not isinstance(kind, str) or kind not in BACKENDS:
        raise ValueError(f"{where}.backend must be one of {', '.join(BACKENDS)}, not {kind!r}.")
    own = {name: value for name, value in given.items() if name != "backend"}
    if "api_key" in own:
        raise ValueError(
            f"{where}.api_key: a key does not belong in a file; name its variable in {where}.api_key_env."
        )
    if kind != "openai" and isinstance(own.get("model"), str):
        own["model"] = str(beside(own["model"], folder))
    settings = BACKENDS[kind](**checked_values(BACKENDS[kind], own, where))
    settings.check(where)
    return settings


def beside(path: str, folder: Path) -> Path:
    """Return a path beside the file that names it, where there is one, else as it is: in the working directory."""
    found = folder / Path(path).expanduser()
    # Not `exists`: it raises for a name that is too long for the file system.
    return found if os.path.exists(found) else Path(path).expanduser()


def _check_folder(model: str, where: str) -> None:
    if not os.path.isfile(Path(model) / "config.json"):
        raise ValueError(
            f"{where}.model: {model!r} is no folder with a model in it (no config.json); give one, or a base_url and the "
            "endpoint's name of the model."
        )

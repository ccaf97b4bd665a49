"""One run as LLaMA-Factory parsed it, and what the user wrote for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunArguments:
    """One run as LLaMA-Factory parsed it, with the keys the user set and the folder of the YAML file."""

    model_args: Any
    data_args: Any
    training_args: Any
    finetuning_args: Any
    generating_args: Any
    explicit: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @classmethod
    def of(cls, parsed: Sequence[Any], *, explicit: Mapping[str, Any], folder: Path | None) -> RunArguments:
        """From what LLaMA-Factory's `get_train_args` returns."""
        model, data, training, finetuning, generating = parsed
        return cls(model, data, training, finetuning, generating, explicit, folder)

    def is_default(self, name: str) -> bool:
        """Whether the parsed value of key `name` is its default."""
        return any(item.name == name and getattr(owner, name) == item.default for owner, item in self._items())

    def _items(self) -> Iterator[tuple[Any, dataclasses.Field[Any]]]:
        for owner in (
            self.model_args,
            self.data_args,
            self.training_args,
            self.finetuning_args,
            self.generating_args,
        ):
            yield from ((owner, item) for item in dataclasses.fields(owner))

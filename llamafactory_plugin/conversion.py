"""What LLaMA-Factory's converters would lose: extra columns, prompt-only chats, the plain system text."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from llamafactory.extras.constants import DATA_CONFIG

from llamafactory_plugin import __version__
from llamafactory_plugin.errors import UsageError

EXTRA = "_extra_"
ALPACA_TEXTS = ("prompt", "query", "response", "system")
# Columns of LLaMA-Factory's defaults that a prompt-only set may lack when dataset_info.json names no columns.
DEFAULT_COLUMNS = ("query", "response")


class KeepColumns:
    """A LLaMA-Factory converter, and what it would lose: extra columns, prompt-only chats, the plain system text."""

    def __init__(self, convert: Any, attributes: Any) -> None:
        self.convert = convert
        self.attributes = attributes
        self.version = __version__  # part of what `datasets` hashes: another version does not read this one's cache

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        columns = list(example)
        example = self._with_default_columns(dict(example))  # datasets' lazy row loses values under `|`
        self._check_columns(example, columns)
        self._check_texts(example)
        output = self.convert(self._with_empty_answer(example) if self._is_prompt_only(example) else example)
        if self.attributes.formatting == "openai":
            output["_system"] = self._plain_system(example)
        # No type can be read off an empty list, which would keep the set from being mixed with labelled ones.
        output["_response"] = output["_response"] or [{"role": "assistant", "content": ""}]
        marks = {EXTRA + name: value for name, value in self.attributes.marks.items()}
        return output | {EXTRA + name: example[name] for name in self.attributes.extra_columns} | marks

    def _with_default_columns(self, example: dict[str, Any]) -> dict[str, Any]:
        if self.attributes.formatting != "alpaca" or self.attributes.has_named_columns:
            return example
        defaults = {getattr(self.attributes, column): None for column in DEFAULT_COLUMNS}
        return defaults | example

    def _check_texts(self, example: dict[str, Any]) -> None:
        names = [getattr(self.attributes, name) for name in ALPACA_TEXTS if self.attributes.formatting == "alpaca"]
        wrong = next((name for name in names if name and not isinstance(example[name], (str, type(None)))), None)
        if wrong is not None:
            raise UsageError(
                f"dataset: column {wrong!r} of {self.attributes.dataset_name} holds {example[wrong]!r}, which is no text; "
                f'write it as a string, or name the column under "extra" in {DATA_CONFIG} to hand it to rewards as it is.'
            )

    def _check_columns(self, example: dict[str, Any], columns: Sequence[str]) -> None:
        chat_columns = ("messages",) if self.attributes.formatting != "alpaca" else ()
        alpaca_columns = ("prompt", "query", "response", "history") if self.attributes.formatting == "alpaca" else ()
        names = ("system", "tools", "chosen", "rejected", *chat_columns, *alpaca_columns)
        wanted = [getattr(self.attributes, name) for name in names] + self.attributes.extra_columns
        missing = next((column for column in wanted if column and column not in example), None)
        if missing is not None:
            close = difflib.get_close_matches(missing, columns, n=1)
            raise UsageError(
                f"dataset: {self.attributes.dataset_name} has no column {missing!r}; it has {', '.join(columns)}: "
                f'name the right one under "columns" in {DATA_CONFIG} or in grpo_extra_columns'
                + (f" (did you mean {close[0]!r}?)." if close else ".")
            )

    def _is_prompt_only(self, example: dict[str, Any]) -> bool:
        if self.attributes.formatting == "alpaca" or self.attributes.ranking:
            return False
        messages = example[self.attributes.messages]
        asking = (self.attributes.user_tag, self.attributes.observation_tag)
        return bool(messages) and messages[-1][self.attributes.role_tag] in asking

    def _with_empty_answer(self, example: dict[str, Any]) -> dict[str, Any]:
        answer = {self.attributes.role_tag: self.attributes.assistant_tag, self.attributes.content_tag: ""}
        return example | {self.attributes.messages: [*example[self.attributes.messages], answer]}

    def _plain_system(self, example: dict[str, Any]) -> str:
        messages = example[self.attributes.messages]
        if messages and messages[0][self.attributes.role_tag] == self.attributes.system_tag:
            return messages[0][self.attributes.content_tag]
        return (example.get(self.attributes.system) or "") if self.attributes.system else ""

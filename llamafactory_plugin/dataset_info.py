"""dataset_info.json, read for GRPO: ranking sets pass, extra columns are known, wrong entries get one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from llamafactory.data import converter as lf_converter
from llamafactory.data import loader as lf_loader
from llamafactory.extras.constants import DATA_CONFIG

from llamafactory_plugin.errors import UsageError, nearest

# Names that TRL hands to reward functions itself, or that stand for something else in a row.
RESERVED_COLUMNS = frozenset(
    [
        "prompt",
        "prompts",
        "completion",
        "completions",
        "completion_ids",
        "trainer_state",
        "log_extra",
        "log_metric",
        "environments",
        "image",
        "images",
        "tools",
        "plain_prompt",
        "experience_selection",
    ]
)
MEDIA_COLUMNS = ("images", "videos", "audios")
# Where a description of dataset_info.json may say that its rows are.
SOURCES = ("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


class AttributeLister:
    """LLaMA-Factory's `get_dataset_list`, for GRPO: ranking sets pass, and each entry knows its extra columns.

    Args:
        dataset_dir: LLaMA-Factory's.
        extra_columns: of `grpo_extra_columns`.
        marked: datasets whose rows get True in `mark`, where all others get False; no such column when empty.
        mark: the name of that column.
    """

    def __init__(
        self, dataset_dir: Any, extra_columns: Sequence[str], marked: Sequence[str] = (), mark: str = "canary"
    ) -> None:
        self.dataset_dir = dataset_dir
        self.extra_columns = list(extra_columns)
        self.marked, self.mark = tuple(marked), mark
        self._list = lf_loader.get_dataset_list

    def list(self, dataset_names: Any, dataset_dir: Any) -> Any:
        info = self._read_info() if dataset_names else None
        for name in dataset_names or []:
            if info is not None:
                self._check_entry(name, info)
        attributes = self._list(dataset_names, dataset_dir)
        for name, attribute in zip(dataset_names or [], attributes, strict=True):
            self._prepare(name, attribute, (info or {}).get(name, {}).get("columns"))
        return attributes

    def _check_entry(self, name: str, info: dict[str, Any]) -> None:
        if name not in info:
            raise UsageError(f"dataset: {name!r} is not in {self._info_path()}{nearest(name, info)}")
        entry = info[name]
        fault = _fault(entry)
        path = os.path.join(self.dataset_dir, entry["file_name"]) if not fault and "file_name" in entry else None
        if path and not set(entry).intersection(SOURCES[1:]) and not os.path.exists(path):
            fault = f"names the file {path}, which does not exist"
        if fault:
            raise UsageError(f"dataset: the entry of {name!r} in {self._info_path()} {fault}; correct it.")

    def _prepare(self, name: str, attribute: Any, columns: dict[str, Any] | None) -> None:
        needed = ["prompt" if attribute.formatting == "alpaca" else "messages"]
        needed += ["chosen", "rejected"] if attribute.ranking else []
        unnamed = [column for column in needed if getattr(attribute, column) is None]
        if unnamed:
            raise UsageError(
                f'dataset: {name} names no {" and no ".join(unnamed)} under "columns" in {DATA_CONFIG}; add it.'
            )
        media = [column for column in MEDIA_COLUMNS if getattr(attribute, column)]
        if media:
            raise UsageError(f"dataset: {name} has {', '.join(media)}; stage grpo trains on text only for now.")
        if attribute.kto_tag:
            raise UsageError(f"dataset: {name} is a kto set; use its prompts with a reward function, without kto_tag.")
        extra = (columns or {}).get("extra") or []
        if not isinstance(extra, list) or not all(isinstance(column, str) for column in extra):
            raise UsageError(f'dataset: "extra" of {name} in {DATA_CONFIG} must be a list of columns, not {extra!r}.')
        attribute.extra_columns = list(dict.fromkeys([*extra, *self.extra_columns]))
        reserved = RESERVED_COLUMNS.intersection(attribute.extra_columns)
        if reserved:
            raise UsageError(
                f"grpo_extra_columns: {', '.join(sorted(reserved))} is a reserved name; rename the column."
            )
        if self.marked and self.mark in attribute.extra_columns:
            raise UsageError(
                f"grpo_collapse_guard: canary_dataset marks its rows in the column {self.mark!r}, which {name} has already; "
                "set canary_column instead, or rename that column."
            )
        attribute.marks = {self.mark: name in self.marked} if self.marked else {}
        attribute.has_named_columns = columns is not None
        # The loader refuses `ranking is True` outside stage rm; converters only ask whether it is true.
        attribute.ranking = int(bool(attribute.ranking))

    def _info_path(self) -> str:
        return DATA_CONFIG if isinstance(self.dataset_dir, dict) else os.path.join(self.dataset_dir, DATA_CONFIG)

    def _read_info(self) -> dict[str, Any] | None:
        if isinstance(self.dataset_dir, dict):
            return self.dataset_dir
        if self.dataset_dir == "ONLINE":
            return None
        if self.dataset_dir.startswith("REMOTE:"):
            from huggingface_hub import hf_hub_download

            path = hf_hub_download(repo_id=self.dataset_dir[7:], filename=DATA_CONFIG, repo_type="dataset")
        else:
            path = self._info_path()
        try:
            with open(path, encoding="utf-8") as file:
                info = json.load(file)
        except OSError as error:
            raise UsageError(
                f"dataset_dir: cannot read {path} ({error.strerror}); set dataset_dir to its folder."
            ) from None
        except ValueError as error:
            raise UsageError(f"dataset_dir: {path} is not valid JSON ({error}); correct the file.") from None
        if not isinstance(info, dict):
            raise UsageError(f"dataset_dir: {path} must hold one JSON object, dataset name -> description.")
        return info


def _fault(entry: Any) -> str | None:
    """What is wrong with the shape of one description in dataset_info.json."""
    if not isinstance(entry, dict):
        return f"must be an object with a file_name, not {entry!r}"
    if not any(isinstance(entry.get(source), str) for source in SOURCES):
        return "has no file_name"
    formats = lf_converter.DATASET_CONVERTERS
    formatting = entry.get("formatting", "alpaca")
    if not isinstance(formatting, str) or formatting not in formats:
        return (
            f"has the formatting {formatting!r}, which is none of {', '.join(formats)}{nearest(formatting, formats)}"
        )
    for key in ("columns", "tags"):
        value = entry.get(key, {})
        if not isinstance(value, dict):
            return f"has {key} that are no mapping of names, but {value!r}"
        wrong = next(
            (part for part, text in value.items() if part != "extra" and not isinstance(text, str | None)), None
        )
        if wrong is not None:
            return f"has {value[wrong]!r} for {wrong!r} of {key}, which is no text"
    return None

"""The datasets of a run, loaded by LLaMA-Factory.

LLaMA-Factory's own `get_dataset` loads, mixes, splits and caches. While it runs, four of its functions are swapped:
the one that lists dataset attributes (so that ranking sets pass, and extra columns are known), the one that loads a
single dataset (so that its errors say what to correct), the one that returns the converter (so that extra columns
survive it) and the one that returns the stage's processor.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from datasets.exceptions import DatasetsError
from llamafactory.data import converter as lf_converter
from llamafactory.data import loader as lf_loader
from llamafactory.extras import logging
from llamafactory.extras.constants import DATA_CONFIG

from llamafactory_plugin.conversion import EXTRA, KeepColumns
from llamafactory_plugin.dataset_info import AttributeLister
from llamafactory_plugin.errors import UsageError, nearest
from llamafactory_plugin.processing import (
    GROUND_TRUTH_NAMES,
    INVALID,
    PROMPT_TOKENS,
    TOO_LONG,
    GRPODatasetProcessor,
    is_absent,
    reason_to_drop,
)
from llamafactory_plugin.register import swapped
from llamafactory_plugin.rendering import PromptRenderer
from llamafactory_plugin.reward_mappings import CANARY_COLUMN, canary_datasets

logger = logging.get_logger("llamafactory.grpo")

SHOWN_PROMPTS = 3
OPTIONAL_COLUMNS = ("tools", "chosen", "rejected", *GROUND_TRUTH_NAMES)


def load_data(run: Any, renderer: PromptRenderer, processor: Any, max_prompt_length: int) -> GRPOData:
    """The datasets of a run, as TRL's GRPOTrainer takes them.

    Columns: `prompt` (messages), `solution`, `answer` and `ground_truth` (the response's text, unless the data has
    such extra columns), `chosen` and `rejected` of ranking sets, `tools`, and the extra columns. Prompts longer than
    `max_prompt_length` tokens and malformed rows are dropped, counted and reported.

    Raises:
        UsageError: for a missing column, media, a kto set, a reserved name, a malformed dataset_info.json, an empty set.
    """
    canaries = canary_datasets(run.finetuning_args.grpo_collapse_guard)
    check_canary_datasets(canaries, run.data_args.dataset or [])
    extra_columns = wanted_columns(run.finetuning_args)
    lister = AttributeLister(run.data_args.dataset_dir, extra_columns, canaries, CANARY_COLUMN)
    own_converter = lf_converter.get_dataset_converter

    def get_converter(name: str, attributes: Any, data_args: Any) -> KeepColumns:
        return KeepColumns(own_converter(name, attributes, data_args), attributes)

    def get_processor(
        data_args: Any, stage: str, template: Any, tokenizer: Any, processor: Any, do_generate: bool = False
    ) -> GRPODatasetProcessor:
        return GRPODatasetProcessor(template, tokenizer, processor, data_args, max_prompt_length=max_prompt_length)

    load_one = functools.partial(load_single_dataset, lf_loader._load_single_dataset)
    with (
        swapped(lf_loader, get_dataset_list=lister.list, _get_dataset_processor=get_processor),
        swapped(lf_loader, _load_single_dataset=load_one),
        swapped(lf_converter, get_dataset_converter=get_converter),
    ):
        try:
            module = lf_loader.get_dataset(
                renderer.template,
                run.model_args,
                run.data_args,
                run.training_args,
                stage="grpo",  # type: ignore[arg-type]
                tokenizer=renderer.tokenizer,
                processor=processor,
            )
        except ValueError as error:
            raise _type_conflict(error) from error
    return GRPOData(module, max_prompt_length)


def wanted_columns(arguments: Any) -> list[str]:
    """The columns of `grpo_extra_columns`, that of the curriculum, and those that episodes keep."""
    curriculum = arguments.grpo_config.get("curriculum_column")
    given = [*(arguments.grpo_extra_columns or []), *(arguments.experience_metadata_columns or [])]
    return list(dict.fromkeys([*given, *([curriculum] if curriculum else [])]))


def check_canary_datasets(canaries: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a canary set that the run does not train on, and a run without any other.

    Raises:
        UsageError: naming the set.
    """
    missing = next((name for name in canaries if name not in names), None)
    if missing is not None:
        raise UsageError(
            f"grpo_collapse_guard: canary_dataset {missing!r} is not in dataset ({', '.join(names)}){nearest(missing, names)} "
            "Its rows are measured among the training rows: add it there."
        )
    if canaries and set(canaries) >= set(names):
        raise UsageError(
            "grpo_collapse_guard: every dataset is a canary_dataset, and canary rows teach nothing; add the unlabelled one."
        )


def _type_conflict(error: ValueError) -> ValueError:
    """A sentence in place of `datasets`' list of all features when an extra column has two types; else `error`."""
    column = re.search(rf"can't be aligned because the key {EXTRA}(\S+)", str(error))
    if column is None:
        return error
    return UsageError(
        f"dataset: the extra column {column[1]!r} has different types in the datasets to mix; write it with one type."
    )


def load_single_dataset(load: Callable[..., Any], attributes: Any, *args: Any) -> Any:
    """LLaMA-Factory's `_load_single_dataset`, and one sentence where its file or its rows are not as described.

    Raises:
        UsageError: naming the dataset, what went wrong and where its description stands.
    """
    try:
        return load(attributes, *args)
    except UsageError:
        raise
    except StopIteration:
        raise UsageError(f"dataset: {attributes.dataset_name} has no rows; check the file and max_samples.") from None
    except (DatasetsError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"dataset: {attributes.dataset_name} cannot be read in the format {attributes.formatting} "
            f"({type(error).__name__}: {error.__cause__ or error}); check that it has rows, and that formatting, columns "
            f"and tags in {DATA_CONFIG} describe them."
        ) from error


class GRPOData:
    """The finished datasets of a run.

    Attributes:
        datasets: `train_dataset` and `eval_dataset`, the latter one dataset or a dict of them.
        longest_prompt: tokens of the longest prompt of all.
        longest: tokens and text of the last message of the longest prompts, longest first.
    """

    def __init__(self, module: dict[str, Any], max_prompt_length: int) -> None:
        self.longest: list[tuple[int, str]] = []
        self.datasets = {
            key: {name: self._finish(name, one, max_prompt_length) for name, one in value.items()}
            if isinstance(value, dict)
            else self._finish(key, value, max_prompt_length)
            for key, value in module.items()
        }
        self.longest_prompt = self.longest[0][0]

    def _finish(self, name: str, dataset: Any, max_prompt_length: int) -> Any:
        dataset = finish_dataset(name, dataset, max_prompt_length)
        tokens = list(dataset[PROMPT_TOKENS])
        rows = sorted(range(len(tokens)), key=tokens.__getitem__, reverse=True)[:SHOWN_PROMPTS]
        found = [(tokens[row], dataset[row]["prompt"][-1]["content"]) for row in rows]
        self.longest = sorted([*self.longest, *found], key=lambda item: item[0], reverse=True)[:SHOWN_PROMPTS]
        return dataset.remove_columns(PROMPT_TOKENS)

    def each(self) -> list[tuple[str, Any]]:
        """Every dataset with its name."""
        pairs: list[tuple[str, Any]] = []
        for name, dataset in self.datasets.items():
            pairs.extend(dataset.items() if isinstance(dataset, dict) else [(name, dataset)])
        return pairs

    def columns(self) -> set[str]:
        """The columns that every dataset has."""
        return set.intersection(*(set(dataset.column_names) for _, dataset in self.each()))


def finish_dataset(name: str, dataset: Any, max_prompt_length: int) -> Any:
    """Drop malformed rows and over-long prompts, report them, and leave off columns that hold nothing.

    Raises:
        UsageError: when no row is left.
    """
    if PROMPT_TOKENS not in dataset.column_names:
        raise UsageError("tokenized_path: it holds the data of another stage; remove it, or name a new folder.")
    reasons = [reason_to_drop(tokens, max_prompt_length) for tokens in dataset[PROMPT_TOKENS]]
    too_long, invalid = (sum(reason == kind for reason in reasons) for kind in (TOO_LONG, INVALID))
    report = f"{too_long} of {len(reasons)} prompts longer than {max_prompt_length} tokens (cutoff_len), {invalid} malformed"
    if too_long + invalid == len(reasons):
        raise UsageError(f"dataset: every row of {name} was dropped: {report}; raise cutoff_len or check the columns.")
    if too_long + invalid:
        dataset = dataset.select([index for index, reason in enumerate(reasons) if not reason])
        logger.warning_rank0(f"Dropped from {name}: {report}.")
    present = {column: list(dataset[column]) for column in OPTIONAL_COLUMNS if column in dataset.column_names}
    absent = {column: sum(map(is_absent, values)) for column, values in present.items()}
    dataset = dataset.remove_columns([column for column, count in absent.items() if count == len(dataset)])
    partly_empty = [column for column, count in absent.items() if 0 < count < len(dataset)]
    if not partly_empty:
        return dataset
    return dataset.map(empty_to_none, fn_kwargs={"columns": partly_empty}, features=dataset.features)


def empty_to_none(row: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """An absent text is None for reward functions."""
    return {column: None if is_absent(row[column]) else row[column] for column in columns}

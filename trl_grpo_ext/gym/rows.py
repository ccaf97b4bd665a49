"""The data and the rewards that the trainers are given, in the forms that TRL takes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trl_grpo_ext.rewards import REWARDS, RewardAdapter, ScalarReward, check_reward_columns, resolve_reward_funcs

PROMPTS = ("question", "query", "problem")
_WHOLE_BATCH = {"completions", "completion_ids"}


def row_list(data: Any) -> Any:
    """Return rows: those of a mapping of columns, which a slice of a `datasets.Dataset` is; other data as it is."""
    if not isinstance(data, Mapping) or hasattr(data, "column_names"):
        return data
    lengths = {name: len(column) for name, column in data.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of a dataset must be of one length, and these are of {lengths}.")
    return [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]


def trl_dataset(data: Any, argument: str) -> Any:
    """Return data as TRL takes it: a dataset with a column `prompt`; a column of `PROMPTS` is renamed.

    Args:
        data: a dataset of `datasets`, or rows.
        argument: its name, for messages.

    Raises:
        ValueError: no prompts.
    """
    if data is None:
        return None
    data = row_list(data)
    if not hasattr(data, "column_names"):
        from datasets import Dataset

        data = Dataset.from_list([*_checked(data, argument)])
    columns = data.column_names or ()
    other = next((name for name in PROMPTS if name in columns), None)
    if "prompt" in columns or not columns:
        return data
    if other is None:
        raise ValueError(f"{argument} needs a column prompt, {', '.join(PROMPTS)}; it has {', '.join(columns)}.")
    return data.rename_column(other, "prompt")


def _checked(data: Any, argument: str) -> Sequence[Mapping[str, Any]]:
    rows = list(data) if isinstance(data, Iterable) and not isinstance(data, str) else []
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(
            f"{argument} must be a dataset of the library datasets, or rows such as {{'prompt': ...}}, at least one; "
            f"to resume, use resume_from_checkpoint. It is {data!r:.80}."
        )
    return rows


def trl_rewards(spec: Any, columns: Iterable[str] | None) -> list[Any]:
    """Return reward functions of TRL, checked against the columns of the data.

    A function that names neither `completions` nor `completion_ids`, such as `(query, response)`, scores row by row
    (`ScalarReward`). None is what `--stage grpo` does without rewards: likeness to the chosen minus likeness to the
    rejected answer, or equality with `solution`.

    Args:
        spec: a reward, a model of transformers, a name, or several.
        columns: of the data; None where they are not known.

    Raises:
        ValueError: no reward, or one that this data can't be scored with.
    """
    spec = _by_columns(set(columns or ())) if spec is None else spec
    rewards = [_reward(item) for item in (spec if isinstance(spec, list | tuple) else [spec])]
    for reward in rewards if columns is not None else ():
        if not isinstance(reward, str) and not _is_model(reward):
            check_reward_columns(reward, frozenset(columns or ()))
    return rewards


def _by_columns(columns: set[str]) -> str:
    if {"chosen", "rejected"} <= columns:
        return "preference_overlap"
    if "solution" in columns:
        return "exact_match"
    raise ValueError(
        "there is no reward: give reward_model=, such as a function of (query, response), or data with the columns "
        "chosen and rejected, or solution."
    )


def _is_model(reward: Any) -> bool:
    return hasattr(reward, "forward") and hasattr(reward, "config")


def _reward(item: Any) -> Any:
    # A folder or a name with a slash is a reward model, which TRL loads.
    model = isinstance(item, str) and item not in REWARDS and ":" not in item and ("/" in item or os.path.isdir(item))
    if model or _is_model(item):
        return item
    reward = resolve_reward_funcs([item])[0]
    return reward if isinstance(reward, RewardAdapter) or _takes_batches(reward) else ScalarReward(reward)


def _takes_batches(reward: Any) -> bool:
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):
        return True
    only_rest = {item.kind for item in parameters} == {inspect.Parameter.VAR_KEYWORD}
    return only_rest or bool(_WHOLE_BATCH & {item.name for item in parameters})

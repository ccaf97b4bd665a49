"""The reward functions of a run: named, or chosen for the data; checked against its columns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llamafactory_plugin.dataset import GRPOData
from llamafactory_plugin.errors import UsageError
from llamafactory_plugin.run_arguments import RunArguments
from trl_grpo_ext.rewards import REWARDS, check_reward_columns, resolve_reward_funcs


def load_rewards(run: RunArguments) -> list[Callable[..., Any]]:
    """The functions named by `reward_funcs`: paths relative to the YAML file's folder, then to the working directory.

    Raises:
        UsageError: for an unknown name, a file or function that cannot be loaded, or a wrong number of weights.
    """
    folders = [folder for folder in (run.folder, Path.cwd()) if folder is not None]
    try:
        rewards = resolve_reward_funcs(run.finetuning_args.reward_funcs or [], folders)
    except ValueError as error:
        raise UsageError(f"reward_funcs: {error}") from error
    weights = run.finetuning_args.reward_weights
    if weights is not None and len(weights) != max(len(rewards), 1):
        raise UsageError(
            f"reward_weights: {len(weights)} weights for {max(len(rewards), 1)} reward functions; give one per function."
        )
    return rewards


def default_reward(data: GRPOData, notes: list[str]) -> Callable[..., Any]:
    """The reward of a run that names none.

    Raises:
        UsageError: when the data has no ground truth to compare with.
    """
    columns = data.columns()
    if {"chosen", "rejected"} <= columns:
        name, reason = "preference_overlap", "likeness to the chosen minus likeness to the rejected answer"
    elif "solution" in columns:
        name, reason = "exact_match", "1 where the completion equals the dataset's response"
    else:
        raise UsageError(
            "reward_funcs: none is named and the dataset has no response to compare with; name a built-in or a function "
            "as path/to/file.py:function."
        )
    notes.append(f"reward_funcs is not set: {name} ({reason})")
    return resolve_reward_funcs([name])[0]


def check_rewards(rewards: Sequence[Callable[..., Any]], data: GRPOData) -> None:
    """Refuse a reward function whose columns the data does not have, or has not in every row.

    Raises:
        UsageError: naming function and column.
    """
    columns = data.columns()
    for reward in rewards:
        try:
            check_reward_columns(reward, columns)
        except ValueError as error:
            raise UsageError(f"reward_funcs: {error}") from error
    for reward in rewards:
        if REWARDS.get(reward.__name__) is reward:
            _check_ground_truth(reward, data)


def _check_ground_truth(reward: Callable[..., Any], data: GRPOData) -> None:
    """Score every ground truth as if it were a completion: what a built-in cannot read is refused now, not mid-run."""
    for name, dataset in data.each():
        columns = [column for column in inspect.signature(reward).parameters if column in dataset.column_names]
        values = {column: list(dataset[column]) for column in columns}
        for column in columns:
            missing = sum(value is None for value in values[column])
            if missing:
                raise UsageError(
                    f"reward_funcs: {reward.__name__} needs {column!r}, which {missing} of {len(dataset)} rows of {name} "
                    "lack; remove those rows, or name a reward function that can do without."
                )
        if not columns:
            continue
        try:
            reward(completions=[str(value) for value in values[columns[0]]], **values)
        except ValueError as error:
            raise UsageError(f"reward_funcs: {reward.__name__} on {name}: {error}") from error

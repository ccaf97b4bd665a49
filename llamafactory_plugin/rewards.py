"""The reward functions of a run: named, composed, or chosen for the data; checked against its columns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from llamafactory_plugin.dataset import GRPOData
from llamafactory_plugin.errors import UsageError
from llamafactory_plugin.reward_log import KEYWORDS
from llamafactory_plugin.reward_mappings import composed_reward, guarded_reward, names_reward
from llamafactory_plugin.reward_model import NAME, make_reward_model, parts_of
from llamafactory_plugin.run_arguments import RunArguments
from trl_grpo_ext import SelfCertainty
from trl_grpo_ext.rewards import (
    REWARDS,
    RewardIsolation,
    check_reward_columns,
    isolate_reward_funcs,
    resolve_reward_funcs,
)
from trl_grpo_ext.rewards.composition import CompositeReward
from trl_grpo_ext.rewards.label_free import CollapseGuard

Reward = Callable[..., Any]
SELF_CERTAINTY = "self_certainty"


def load_rewards(run: RunArguments) -> list[Reward]:
    """The rewards of a run, none of them run yet: `reward_funcs`, then the composition, then the reward model.

    Paths are relative to the YAML file's folder, then to the working directory. Functions of files and of other
    distributions run in worker processes unless `grpo_reward_in_process`. A reward model that the composition names is
    no reward of its own; a collapse guard takes the place of the reward it guards.

    Raises:
        UsageError: for an unknown name, a file or function that cannot be loaded, a mapping that is none, or a wrong
            number of weights.
    """
    arguments = run.finetuning_args
    resolver = RewardResolver(run)
    rewards = resolver.all(arguments.reward_funcs or [])
    model = make_reward_model(run)
    if arguments.grpo_reward_composition:
        known = {NAME: model} if model is not None else {}
        rewards.append(
            composed_reward(arguments.grpo_reward_composition, known, resolver.one, arguments.grpo_group_size)
        )
    if model is not None and not names_reward(arguments.grpo_reward_composition, NAME):
        rewards.append(model)
    check_names(rewards)
    if arguments.grpo_collapse_guard:
        rewards = [guarded_reward(arguments.grpo_collapse_guard, rewards, resolver.one)]
    check_weights(arguments.reward_weights, max(len(rewards), 1))
    return rewards


class RewardResolver:
    """Names and files to reward functions, in the folders and with the deadline and error policy of a run."""

    def __init__(self, run: RunArguments) -> None:
        arguments = run.finetuning_args
        self.folders = [folder for folder in (run.folder, Path.cwd()) if folder is not None]
        self.isolation = RewardIsolation(
            timeout=arguments.grpo_reward_timeout,
            errors=arguments.grpo_reward_errors,
            in_process=arguments.grpo_reward_in_process,
            network=arguments.grpo_reward_network,
        )

    def all(self, names: Sequence[str]) -> list[Reward]:
        """The functions that `reward_funcs` names.

        Raises:
            UsageError: for a name, file or function that is none.
        """
        specs = [SelfCertainty() if name == SELF_CERTAINTY else name for name in names]
        try:
            return isolate_reward_funcs(specs, self.folders, self.isolation)
        except (TypeError, ValueError) as error:
            raise UsageError(f"reward_funcs: {error}") from error

    def one(self, name: Any) -> Reward:
        """One function.

        Raises:
            ValueError, TypeError: for a name, file or function that is none.
        """
        if name == SELF_CERTAINTY:
            raise ValueError("self_certainty is computed by the trainer and can't be a part: name it in reward_funcs.")
        return isolate_reward_funcs([name], self.folders, self.isolation)[0]


def check_names(rewards: Sequence[Reward]) -> None:
    """Refuse two rewards of one name, under which they are logged.

    Raises:
        UsageError: naming it.
    """
    names = [reward.__name__ for reward in rewards]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UsageError(
            f"reward_funcs: two rewards of this run have the name {repeated!r}; rename the function, or set `name` in "
            "grpo_reward_composition."
        )


def check_weights(weights: Sequence[float] | None, count: int) -> None:
    """Refuse another number of weights than of rewards.

    Raises:
        UsageError: with both numbers.
    """
    if weights is not None and len(weights) != count:
        raise UsageError(
            f"reward_weights: {len(weights)} weights for {count} reward functions; give one per function."
        )


def default_reward(data: GRPOData, notes: list[str]) -> Reward:
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


def check_rewards(rewards: Sequence[Reward], data: GRPOData, rows_per_call: int, group_size: int) -> None:
    """Refuse a reward function whose columns the data does not have, or has not in every row, or whose groups are split.

    Args:
        rewards: with their parts, all are checked.
        data: the run's.
        rows_per_call: completions of one process that a reward sees at a time.
        group_size: completions per prompt.

    Raises:
        UsageError: naming function and column.
    """
    columns = data.columns()
    parts = [part for reward in rewards for part in parts_of(reward)]
    for reward in parts:
        if isinstance(reward, CollapseGuard):
            _check_canaries(reward, data)
    for reward in parts:
        try:
            check_reward_columns(reward, columns, KEYWORDS)
        except ValueError as error:
            raise UsageError(f"reward_funcs: {error}") from error
        if needs_groups(reward) and rows_per_call % group_size:
            raise UsageError(
                f"reward_funcs: {reward.__name__} compares the completions of a group, but a process has {rows_per_call} "
                f"rows per step, so that groups of {group_size} are split; set per_device_train_batch_size to a multiple "
                f"of {group_size}."
            )
    truths = [reward.truth for reward in parts if isinstance(reward, CollapseGuard)]
    for reward in parts:
        if REWARDS.get(reward.__name__) is reward and reward not in truths:
            check_ground_truth(reward, data.each())


def check_redrawn_groups(rewards: Sequence[Reward], rounds: int, world_size: int) -> None:
    """Refuse dynamic sampling that would split a group over the processes, for a reward that compares its completions.

    Raises:
        UsageError: naming the reward.
    """
    parts = [part for reward in rewards for part in parts_of(reward)]
    name = next((part.__name__ for part in parts if needs_groups(part)), None)
    if rounds and world_size > 1 and name is not None:
        raise UsageError(
            f"grpo_config.dynamic_sampling_rounds: {name} compares the completions of a group, and a redrawn group may be "
            f"split over the {world_size} processes; remove one of them, or train on one process."
        )


def needs_groups(reward: Reward) -> bool:
    """Whether a reward compares the completions of one prompt."""
    if isinstance(reward, CompositeReward):
        return reward.total != "none" or any(kind != "none" for kind in reward.normalisation.values())
    return hasattr(reward, "group_size")


def _check_canaries(guard: CollapseGuard, data: GRPOData) -> None:
    """Refuse a guard whose column is missing, marks nothing in the training data, or marks rows without ground truth."""
    if guard.canary_column not in data.columns():
        raise UsageError(
            f"grpo_collapse_guard: the data has no column {guard.canary_column!r} that marks canary rows; name the dataset "
            'that holds them as canary_dataset, or name the column under "extra" in dataset_info.json.'
        )
    canaries = [(name, rows.filter(lambda row: bool(row[guard.canary_column]))) for name, rows in data.each()]
    for name, rows in canaries:
        if name == "train_dataset" and not len(rows):
            raise UsageError(
                f"grpo_collapse_guard: no row of {name} has a true value in {guard.canary_column!r}; mark some rows "
                "with ground truth as canaries."
            )
    if REWARDS.get(guard.truth.__name__) is guard.truth:
        check_ground_truth(guard.truth, [(name, rows) for name, rows in canaries if len(rows)])


def check_ground_truth(reward: Reward, datasets: Iterable[tuple[str, Any]], key: str = "reward_funcs") -> None:
    """Score every ground truth as if it were a completion: what a built-in cannot read is refused now, not mid-run.

    Raises:
        UsageError: beginning with the `key` that names the function, for a row without ground truth, or with another.
    """
    for name, dataset in datasets:
        columns = [column for column in inspect.signature(reward).parameters if column in dataset.column_names]
        values = {column: list(dataset[column]) for column in columns}
        for column in columns:
            missing = sum(value is None for value in values[column])
            if missing:
                raise UsageError(
                    f"{key}: {reward.__name__} needs {column!r}, which {missing} of {len(dataset)} rows of {name} "
                    "lack; remove those rows, or name a reward function that can do without."
                )
        if not columns:
            continue
        try:
            reward(completions=[str(value) for value in values[columns[0]]], **values)
        except ValueError as error:
            raise UsageError(f"{key}: {reward.__name__} on {name}: {error}") from error

"""What a run will do, in a few lines: logged when it starts, printed by `grpo-ext check`."""

from __future__ import annotations

import dataclasses
from typing import Any

from llamafactory.extras import logging

from llamafactory_plugin.bitdelta import bitdelta_line
from llamafactory_plugin.config_mapping import own_fields
from llamafactory_plugin.evaluation import evaluation_line
from llamafactory_plugin.experience import experience_line

logger = logging.get_logger("llamafactory.grpo")


def announce(prepared: Any) -> None:
    """Log what the run will do."""
    run, config, plan = prepared.run, prepared.config, prepared.plan
    for note in prepared.notes:
        logger.info_rank0(f"GRPO default: {note}.")
    names = ", ".join(reward.__name__ for reward in prepared.rewards)
    logger.info_rank0(f"GRPO: {plan.prompts} prompts x {plan.group_size} completions per step; rewards: {names}.")
    logger.info_rank0(f"GRPO rollouts: {rollout_line(config)}.")
    logger.info_rank0(f"GRPO {loss_line(config, run.finetuning_args.grpo_preset)}.")
    if (line := experience_line(run.finetuning_args)) is not None:
        logger.info_rank0(f"GRPO {line}.")
    if (line := evaluation_line(prepared.evaluation)) is not None:
        logger.info_rank0(f"GRPO {line}.")
    if (line := bitdelta_line(run.finetuning_args)) is not None:
        logger.info_rank0(f"GRPO {line}.")
    if run.finetuning_args.grpo_reward_control != "none":
        logger.warning_rank0(
            f"GRPO control experiment: rewards are {run.finetuning_args.grpo_reward_control}; the model should not learn."
        )
    if run.model_args.adapter_name_or_path and not run.finetuning_args.create_new_adapter and config.needs_reference:
        logger.warning_rank0(
            "GRPO: the adapter is trained further, so the reference is the model without it; set create_new_adapter: true "
            "to keep the adapted model as reference."
        )


def rollout_line(config: Any) -> str:
    """How completions are sampled."""
    return (
        f"temperature {config.temperature}, top_p {config.top_p}, top_k {config.top_k}, at most "
        f"{config.max_completion_length} tokens"
    )


def loss_line(config: Any, preset: str | None) -> str:
    """The loss, and everything about it that is not the default: preset, anchor, advantages, schedules, sampling."""
    high = "" if config.epsilon_high is None else f" below and {config.epsilon_high} above"
    level = config.importance_sampling_level
    parts = [f"loss {config.loss_type}", f"clip {config.epsilon}{high}", f"beta {config.beta}"]
    parts += [f"preset {preset}"] if preset else []
    parts += [f"importance_sampling_level {level}"] if level != "token" else []
    parts += [f"scale_rewards {config.scale_rewards}"] if config.scale_rewards != "group" else []
    own = own_fields(type(config))
    changed = config.changed(tuple(item.name for item in dataclasses.fields(config) if item.name in own))
    return ", ".join([*parts, *(f"{name} {getattr(config, name)}" for name in changed)])

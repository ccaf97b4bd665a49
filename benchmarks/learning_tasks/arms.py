"""What is compared: presets by name on the extended trainer, TRL's default on TRL's own, and reward controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from learning_tasks.tasks import Task
from trl_grpo_ext import apply_reward_control, config_kwargs, import_trl
from trl_grpo_ext.presets import preset

BASELINE = "trl"
# With num_iterations 1 every ratio is 1 and no clip against the old policy acts: `dapo` would be `trl`, `gspo` and
# `gmpo` would be `grpo`. Those three therefore run with 2, beside TRL's default with 2.
DEFAULT_ARMS = (
    *(BASELINE, "grpo", "dr_grpo", "mc_grpo", "rloo", "normalized_clip", "reference_clip"),
    *("trl@2", "dapo@2", "gspo@2", "gmpo@2"),
)
CONTROLS = ("shuffled", "flipped")
# Losses are compared, at equal CPU seconds: our trainer's faster forms would give its arms more steps than TRL's.
LESS_WORK_OFF = dict.fromkeys(
    ("shared_prompt", "shared_prefill", "chunked_logps", "trim_padding", "keep_groups"), False
)


@dataclass(frozen=True)
class Arm:
    """A preset, or with `@N` behind its name a preset with num_iterations N."""

    name: str
    preset: str
    num_iterations: int

    @property
    def is_stock(self) -> bool:
        """Whether this is TRL's default, on TRL's own trainer."""
        return self.preset == BASELINE


def parse_arm(name: str) -> Arm:
    """Read `preset` or `preset@N`.

    Raises:
        ValueError: no such preset, or N is not a whole number from 1 on.
    """
    base, separator, iterations = name.partition("@")
    preset(base)
    if separator and not (iterations.isdecimal() and int(iterations) > 0):
        raise ValueError(f"--presets: after @ stands num_iterations, a whole number from 1 on, not {name!r}.")
    return Arm(name, base, int(iterations or 1))


def group_size(arm: Arm, task: Task) -> int:
    """Completions per prompt. One more where the baseline is the median, whose row has advantage 0 (MC-GRPO)."""
    return task.group + (preset(arm.preset).get("advantage_baseline") == "median")


def make_config(arm: Arm, task: Task, seed: int, output_dir: str) -> Any:
    """The configuration of a run: of the loss, only what the preset names. Without warm-up, decay or end: see run.py."""
    group = group_size(arm, task)
    shared = {
        "output_dir": output_dir,
        "seed": seed,
        "num_generations": group,
        "per_device_train_batch_size": task.prompts * group,
        "max_completion_length": task.completion_length,
        "num_iterations": arm.num_iterations,
        "max_steps": 1_000_000,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    if arm.is_stock:
        return import_trl().GRPOConfig(**config_kwargs(**shared))
    from trl_grpo_ext import ExtendedGRPOConfig

    return ExtendedGRPOConfig(**shared, **preset(arm.preset), **LESS_WORK_OFF)


def trainer_class(arm: Arm) -> Any:
    """TRL's trainer for TRL's default, ours for the rest."""
    if arm.is_stock:
        return import_trl().GRPOTrainer
    from trl_grpo_ext import ExtendedGRPOTrainer

    return ExtendedGRPOTrainer


class FlippedReward:
    """The negative of a reward: learning it must undo what the reward asks for."""

    def __init__(self, func: Callable[..., list[float]]) -> None:
        self.__name__ = func.__name__
        self.__wrapped__ = func

    def __call__(self, **kwargs: Any) -> list[float]:
        return [-reward for reward in self.__wrapped__(**kwargs)]


def controlled(reward: Callable[..., list[float]], control: str, seed: int) -> Callable[..., list[float]]:
    """The reward itself (`none`), its values shuffled over the rows of a step (`shuffled`), or negated (`flipped`)."""
    if control == "flipped":
        return FlippedReward(reward)
    return apply_reward_control([reward], control, seed)[0]

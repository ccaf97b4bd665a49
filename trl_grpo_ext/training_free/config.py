"""`TrainingFreeConfig`: the settings of a run, their checks, and what must not change between a run and its resume."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from trl_grpo_ext._suggest import did_you_mean
from trl_grpo_ext.training_free.budget import Budget
from trl_grpo_ext.training_free.gate import GateConfig

DEFAULT_OBJECTIVE = "Solve the problem correctly and end with the final answer."
PLACEHOLDER = "{experiences}"
# Settings that a resumed run may change: they decide when it stops and how hard it tries, not what it asks.
FREE = ("budget", "max_attempts")

_COUNTS = {
    "num_generations": 1,
    "num_train_epochs": 1,
    "batch_size": 1,
    "max_completion_length": 1,
    "max_reflection_length": 1,
    "lessons_per_group": 1,
    "max_lesson_words": 1,
    "max_trajectory_chars": 200,
    "max_attempts": 1,
    "max_reasks": 0,
    "min_retire_problems": 2,
    "seed": 0,
}
_FLAGS = ("given_ground_truth", "require_spread", "shuffle")


@dataclass(frozen=True)
class TrainingFreeConfig:
    """Settings of Training-Free GRPO (arXiv 2510.08191). The defaults are the paper's for math, where it has them.

    Args:
        num_generations: G, rollouts per problem. 1 is the paper's ablation without a group; it needs
            `require_spread=False`.
        num_train_epochs: passes over the training problems.
        batch_size: problems per step; a step makes at most one new version of the library.
        temperature: of the rollouts that are learned from.
        eval_temperature: of evaluation, of the gate's held-out problems and of `infer`.
        reflection_temperature: of summaries, comparisons and consolidation.
        max_completion_length: tokens of a rollout.
        max_reflection_length: tokens of a reflection.
        lessons_per_group: the most operations that one group may propose.
        max_lesson_words: the most words of a lesson.
        max_trajectory_chars: characters of a rollout that the reflector sees; the middle of longer ones is left out.
        given_ground_truth: whether reflector and reward see the answers. False: the ground-truth-free mode; the columns
            of `answer_columns` are withheld from both, so the reward has to be a label-free one.
        require_spread: learn only from groups whose rewards differ.
        lesson_dropout: probability that a lesson is hidden from a training rollout, which makes each step an
            experiment about every lesson. 0 switches it off, and with it the retirement of harmful lessons.
        retire_alpha: probability of retiring any harmless lesson as harmful, over the whole run.
        min_retire_problems: problems with the lesson shown and hidden before it may be retired.
        max_attempts: how often one call is made when it fails in a way that may pass, beside what the backend itself
            tries; not part of the fingerprint.
        max_reasks: how often the reflector is asked again, with the parser's error, when its answer can't be used.
        failure_reward: reward of a rollout that failed, or that the reward could not judge.
        gate: settings of the acceptance gate; None accepts every candidate, as the paper does.
        held_out_share: share of the problems that is kept for the gate where `train` is given no held-out problems.
        objective: what the policy is to do, for the reflector.
        learning_objective: what lessons are to be about, for the reflector; empty leaves it open.
        template: what surrounds the lessons in the system message, with `{experiences}` in their place.
        answer_columns: dataset columns that hold the answer; the first that a row has counts.
        domain: lessons of this domain only are shown, changed and added; empty is the whole library.
        shuffle: whether each epoch has its own order, drawn from the seed.
        seed: of every draw, and part of each request's seed.
        budget: limits on calls, tokens, money and time; not part of the fingerprint.

    Raises:
        ValueError: a setting outside its range, or a combination that can't work.
    """

    num_generations: int = 5
    num_train_epochs: int = 3
    batch_size: int = 100
    temperature: float = 0.7
    eval_temperature: float = 0.3
    reflection_temperature: float = 0.7
    max_completion_length: int = 2048
    max_reflection_length: int = 1024
    lessons_per_group: int = 1
    max_lesson_words: int = 32
    max_trajectory_chars: int = 8000
    given_ground_truth: bool = True
    require_spread: bool = True
    lesson_dropout: float = 0.2
    retire_alpha: float = 0.05
    min_retire_problems: int = 10
    max_attempts: int = 3
    max_reasks: int = 2
    failure_reward: float = 0.0
    gate: GateConfig | None = field(default_factory=GateConfig)
    held_out_share: float = 0.3
    objective: str = DEFAULT_OBJECTIVE
    learning_objective: str = ""
    template: str | None = None
    answer_columns: tuple[str, ...] = ("answer", "solution", "ground_truth")
    domain: str = ""
    shuffle: bool = True
    seed: int = 0
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        for name, least in _COUNTS.items():
            _check_count(name, getattr(self, name), least)
        for name in ("temperature", "eval_temperature", "reflection_temperature"):
            _check_number(name, getattr(self, name), 0, math.inf)
        for name in ("lesson_dropout", "held_out_share"):
            _check_number(name, getattr(self, name), 0, 1)
        _check_number("failure_reward", self.failure_reward, -math.inf, math.inf)
        if not 0 < _check_number("retire_alpha", self.retire_alpha, 0, 1) < 1:
            raise ValueError(f"retire_alpha must be above 0 and below 1, not {self.retire_alpha!r}.")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}.")
        columns = self.answer_columns
        object.__setattr__(self, "answer_columns", (columns,) if isinstance(columns, str) else tuple(columns))
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.num_generations == 1 and self.require_spread:
            raise ValueError(
                "num_generations=1 has no spread of rewards to learn from; set require_spread=False (the paper's "
                "ablation without a group), or more generations."
            )
        if self.lesson_dropout == 1:
            raise ValueError("lesson_dropout=1 hides every lesson from every rollout; 0.2 is usual.")
        if self.template is not None and self.template.count(PLACEHOLDER) != 1:
            raise ValueError(
                f"template must hold {PLACEHOLDER} exactly once, where the lessons go: {self.template!r}."
            )
        gate = self.gate
        if gate is not None and not gate.low <= self.failure_reward <= gate.high:
            raise ValueError(
                f"failure_reward={self.failure_reward} is outside the gate's range of rewards [{gate.low}, {gate.high}]; "
                "set low and high of the gate to the range of your reward."
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainingFreeConfig:
        """Return the configuration of a mapping, as YAML gives it: `gate` and `budget` may be mappings too.

        Raises:
            ValueError: an unknown setting, or one outside its range.
        """
        known = [item.name for item in fields(cls)]
        unknown = next((name for name in values if name not in known), None)
        if unknown is not None:
            hint = did_you_mean(unknown, known) or "."
            raise ValueError(f"unknown setting {unknown!r}{hint} There are: {', '.join(known)}.")
        given = dict(values)
        if isinstance(given.get("gate"), Mapping):
            given["gate"] = _gate_from(given["gate"])
        if isinstance(given.get("budget"), Mapping):
            given["budget"] = Budget.from_mapping(given["budget"])
        return cls(**given)

    def fixed(self) -> dict[str, Any]:
        """Return the settings that a resume may not change, as JSON would give them back."""
        values = {name: value for name, value in asdict(self).items() if name not in FREE}
        return dict(json.loads(json.dumps(values)))


def _gate_from(values: Mapping[str, Any]) -> GateConfig:
    known = [item.name for item in fields(GateConfig)]
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        raise ValueError(f"gate: unknown setting {unknown!r}; there are {', '.join(known)}.")
    return GateConfig(**values)


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}.")


def _check_number(name: str, value: Any, low: float, high: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high:
        bound = (
            "" if math.isinf(low) else f" of at least {low:g}" if math.isinf(high) else f" from {low:g} to {high:g}"
        )
        raise ValueError(f"{name} must be a finite number{bound}, not {value!r}.")
    return float(value)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return what differs between two nested mappings, as lines "name: old -> new"."""
    lines = []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: {before!r} -> {after!r}")
    return lines

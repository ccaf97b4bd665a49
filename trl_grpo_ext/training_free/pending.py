"""Groups whose comparison failed, as the journal keeps them until a later step succeeds. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trl_grpo_ext.training_free.problems import Problem
from trl_grpo_ext.training_free.reflection import Failure, Group
from trl_grpo_ext.training_free.rollouts import Rollout


def as_record(failure: Failure) -> dict[str, Any]:
    """Return a failure as JSON has it, with everything that is needed to try again."""
    group = failure.group
    return {
        "problem": group.problem.id,
        "step": group.step,
        "attempts": group.attempts + 1,
        "stage": failure.stage,
        "error": failure.error,
        "rollouts": [[list(item.shown), item.text, item.reward] for item in group.rollouts],
    }


def from_record(record: Mapping[str, Any], problems: Mapping[str, Problem]) -> Group:
    """Return the group of a record."""
    problem = problems[record["problem"]]
    rollouts = tuple(Rollout(problem, tuple(shown), text, reward) for shown, text, reward in record["rollouts"])
    return Group(rollouts, record["step"], record["attempts"])

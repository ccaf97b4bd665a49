"""What the rollouts of all steps say about each lesson. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from trl_grpo_ext.training_free.rollouts import Rollout
from trl_grpo_ext.training_free.usefulness import Inclusion, Usefulness, lesson_usefulness


def inclusions(rollouts: Sequence[Rollout]) -> list[list[Any]]:
    """Return [problem id, lessons shown, reward] of each rollout of one step, as the journal keeps them."""
    return [[rollout.problem.id, list(rollout.shown), rollout.reward] for rollout in rollouts]


def gains(rollouts: Sequence[Rollout], lessons: Iterable[str]) -> list[tuple[str, float]]:
    """Return (lesson, mean reward with it - mean reward without it) of each problem that has rollouts of both kinds."""
    found = []
    groups: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.problem.id, []).append(rollout)
    for lesson in lessons:
        for group in groups.values():
            with_it = [rollout.reward for rollout in group if lesson in rollout.shown]
            without = [rollout.reward for rollout in group if lesson not in rollout.shown]
            if with_it and without:
                found.append((lesson, fmean(with_it) - fmean(without)))
    return found


def last_changes(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return, by lesson, the last step that changed its text."""
    found = {}
    for record in records:
        for operation in record["operations"]:
            if operation["kind"] in ("update", "merge"):
                found[operation["ids"][0]] = record["step"]
    return found


def measured(records: Sequence[Mapping[str, Any]], lessons: Iterable[str], alpha: float) -> dict[str, Usefulness]:
    """Return the usefulness of each lesson, by the rollouts since its text was last changed.

    Args:
        records: of all steps, with their inclusions.
        lessons: ids.
        alpha: probability that any interval misses its effect.
    """
    names, changed, found = sorted(set(lessons)), last_changes(records), {}
    for name in names:
        rollouts = [
            Inclusion(f"{record['step']} {problem}", frozenset(shown), reward)
            for record in records
            if record["step"] > changed.get(name, -1)
            for problem, shown, reward in record["inclusions"]
        ]
        found.update(lesson_usefulness(rollouts, [name], alpha / len(names)))
    return found


def harmful(found: Mapping[str, Usefulness], least: int) -> list[str]:
    """Return the lessons whose whole interval is below 0, on at least `least` problems."""
    return [name for name, item in found.items() if item.harmful and item.problems >= least]

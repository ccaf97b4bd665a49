"""A candidate library against the current one on held-out problems, look by look."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from trl_grpo_ext.experience import Stored
from trl_grpo_ext.training_free.calls import derived_seed
from trl_grpo_ext.training_free.gate import AcceptanceGate, Decision, Key
from trl_grpo_ext.training_free.problems import Problem
from trl_grpo_ext.training_free.rollouts import Ask, Rollout, check_answered

Roller = Callable[[Sequence[Ask]], list[Rollout]]


def held_out_keys(problems: Sequence[Problem], seeds: int, most: int) -> list[Key]:
    """Return the (problem, seed) pairs in the order in which they are asked: problem by problem, in that of the ids.

    The ids are hashes, so the order says nothing about the problems.
    """
    names = sorted(problem.id for problem in problems)
    return [(name, seed) for name in names for seed in range(seeds)][: most - most % seeds]


def compare(
    current: Sequence[Stored],
    candidate: Sequence[Stored],
    held_out: Sequence[Problem],
    gate: AcceptanceGate,
    roll: Roller,
    seed: int,
) -> Decision:
    """Return the gate's decision, or its last word when the held-out problems are used up.

    A pair has the same seed with both libraries. The current library's rollouts are the same in every comparison, so
    they are paid for once: what was accepted by good luck has to be beaten with that luck.

    Args:
        current: the lessons in use.
        candidate: the lessons that want to take their place.
        held_out: problems that nothing was learned from.
        gate: the statistics.
        roll: makes rollouts.
        seed: of the run.

    Raises:
        BackendError: every rollout of a look failed: the model is not there, and nothing is known of the library.
    """
    problems = {problem.id: problem for problem in held_out}
    # The statistics are at their best at the number of pairs that there are.
    gate = gate.sized(len(problems)) if problems else gate
    keys = held_out_keys(held_out, gate.config.seeds, gate.config.max_pairs)
    rewards: tuple[dict[Key, float], dict[Key, float]] = ({}, {})
    decision = gate.decide(*rewards)
    # Whole problems: rewards that compare the rollouts of a prompt see all of them at once.
    size = math.ceil(gate.config.look_every / gate.config.seeds) * gate.config.seeds
    for start in range(0, len(keys), size):
        look = keys[start : start + size]
        asks = [
            Ask(problems[name], tuple(lessons), derived_seed(seed, "held out", name, number), arm)
            for arm, lessons in (("current", current), ("candidate", candidate))
            for name, number in look
        ]
        rollouts = roll(asks)
        for found, arm in zip(rewards, (rollouts[: len(look)], rollouts[len(look) :]), strict=True):
            check_answered(arm, "on the held-out problems")
            found.update({key: rollout.reward for key, rollout in zip(look, arm, strict=True)})
        decision = gate.decide(*rewards)
        if decision.verdict != "continue":
            break
    return decision

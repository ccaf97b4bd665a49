"""Which problems a run learns from and which are held out, checked before a model is asked anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trl_grpo_ext.training_free.cache import CallCache
from trl_grpo_ext.training_free.config import TrainingFreeConfig
from trl_grpo_ext.training_free.gate import GateConfig
from trl_grpo_ext.training_free.problems import Problem, read_problems, split
from trl_grpo_ext.training_free.verifier import Verifier


def training_problems(
    config: TrainingFreeConfig, dataset: Iterable[Mapping[str, Any]], held_out: Iterable[Mapping[str, Any]] | None
) -> tuple[list[Problem], list[Problem]]:
    """Return the problems to learn from and those of the gate; without a gate there are none of the latter.

    Args:
        config: the settings.
        dataset: rows.
        held_out: rows for the gate; None takes `held_out_share` of the dataset.

    Raises:
        ValueError: rows without a prompt, held-out problems that are too few, among the others, or without a gate.
    """
    problems = read_problems(dataset, config.answer_columns)
    if config.gate is None:
        if held_out is not None:
            raise ValueError("held_out is for the gate, and gate=None switches it off; leave one of them out.")
        return problems, []
    if held_out is None:
        problems, kept = split(problems, config.held_out_share, config.seed)
    else:
        kept = read_problems(held_out, config.answer_columns, "held_out")
        _check_disjoint(problems, kept)
    _check_enough(len(kept), config.gate)
    return problems, kept


def check_reward(config: TrainingFreeConfig, reward_model: Any, problems: Sequence[Problem]) -> None:
    """Refuse a reward that can't be called on these problems; it is not called.

    Raises:
        ValueError: see `Verifier.check`, or a reward that there is not.
    """
    cache = CallCache()
    try:
        hidden = () if config.given_ground_truth else config.answer_columns
        Verifier(reward_model, cache, hidden).check(problems)
    finally:
        cache.close()


def _check_disjoint(problems: Sequence[Problem], held_out: Sequence[Problem]) -> None:
    shared = {problem.text for problem in problems} & {problem.text for problem in held_out}
    if shared:
        raise ValueError(
            f"held_out holds {len(shared)} problems of the dataset, the first being {min(shared)[:100]!r}; lessons that "
            "were learned from a problem can't be judged on it."
        )


def _check_enough(held_out: int, gate: GateConfig) -> None:
    if held_out * gate.seeds < gate.min_pairs:
        raise ValueError(
            f"the gate can't accept anything: {held_out} held-out problems with seeds={gate.seeds} are "
            f"{held_out * gate.seeds} pairs, and min_pairs={gate.min_pairs}. Give more problems, a larger "
            "held_out_share, more seeds, or gate=None to accept every candidate without evidence."
        )

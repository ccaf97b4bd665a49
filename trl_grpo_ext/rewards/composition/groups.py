"""Which rows of a reward call belong together, and scores relative to their group. Standard library only."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Any

Score = float | None


def _runs(prompts: Sequence[Any]) -> list[range]:
    starts = [row for row in range(len(prompts)) if row == 0 or prompts[row] != prompts[row - 1]]
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(prompts)], strict=True)]


def _chunks(prompts: Sequence[Any], size: int) -> list[range]:
    if len(prompts) % size:
        raise ValueError(
            f"group_size must divide the rows of a reward call ({len(prompts)}), not be {size}: set it to the trainer's "
            "num_generations, and per_device_train_batch_size * steps_per_generation to a multiple of that."
        )
    groups = [range(start, start + size) for start in range(0, len(prompts), size)]
    for group in groups:
        if any(prompts[row] != prompts[group.start] for row in group):
            raise ValueError(
                f"Rows {group.start} to {group.stop - 1} of this reward call must be one group of group_size={size}, "
                "but their prompts differ; set group_size to the trainer's num_generations."
            )
    return groups


def find_groups(prompts: Sequence[Any], group_size: int | None = None) -> list[range]:
    """Split the rows of one reward call into groups of completions of the same prompt.

    TRL hands a reward function the completions of a prompt in consecutive rows. Without `group_size`, a group is a
    maximal run of equal prompts, and all runs must have one length. Two neighbouring groups of the same prompt (a
    data set with repeated rows) look like one long run: give `group_size` there.

    Args:
        prompts: one prompt per row: strings or message lists, compared with `==`.
        group_size: the trainer's `num_generations`; None (default) reads the groups off the prompts.

    Returns:
        The rows of each group, in order; together they cover every row once.

    Raises:
        ValueError: groups of unequal size; or, with `group_size`, a number of rows that it does not divide, or a group
            with two different prompts. Both happen when a group is split between processes.
    """
    if group_size is not None:
        return _chunks(prompts, group_size)
    groups = _runs(prompts)
    sizes = [len(group) for group in groups]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"Groups, that is runs of rows with the same prompt, must have one size, but have {sizes[:8]}: give "
            "group_size=<num_generations> if prompts repeat in the data, and make per_device_train_batch_size * "
            "steps_per_generation a multiple of num_generations so that no group is split between processes."
        )
    return groups


def _identity(scores: Sequence[float]) -> list[float]:
    return list(scores)


def standardise(scores: Sequence[float]) -> list[float]:
    """(s - mean) / std with the sample standard deviation, as TRL scales advantages; all 0 when the scores are equal.

    The range is that of a z-score: at most (n - 1) / sqrt(n) for n scores.
    """
    if max(scores) == min(scores):
        return [0.0] * len(scores)
    mean, spread = fmean(scores), stdev(scores)
    return [(score - mean) / spread if spread else 0.0 for score in scores]


def rank(scores: Sequence[float]) -> list[float]:
    """(below - above) / (n - 1): how many scores are lower, minus how many are higher. In [-1, 1], mean 0.

    The best of n different scores gets 1, the worst -1; equal scores share the middle of their places; a score alone
    gets 0.
    """
    ordered = sorted(scores)
    first = {score: place for place, score in reversed(list(enumerate(ordered)))}
    last = {score: place for place, score in enumerate(ordered)}
    return [(first[score] + last[score] - len(ordered) + 1) / max(len(ordered) - 1, 1) for score in scores]


NORMALISATIONS: Mapping[str, Callable[[Sequence[float]], list[float]]] = MappingProxyType(
    {"none": _identity, "standardise": standardise, "rank": rank}
)


def normalise(scores: Sequence[Score], groups: Sequence[range], normalisation: str) -> list[Score]:
    """Normalise each group's scores by one of `NORMALISATIONS`; None stays None and has no share in its group.

    Raises:
        KeyError: `normalisation` is not one of `NORMALISATIONS`.
    """
    function = NORMALISATIONS[normalisation]
    result: list[Score] = [None] * len(scores)
    for group in groups:
        rows = [row for row in group if scores[row] is not None]
        values = [value for row in rows if (value := scores[row]) is not None]
        for row, value in zip(rows, function(values) if values else [], strict=True):
            result[row] = value
    return result

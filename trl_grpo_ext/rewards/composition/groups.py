"""Which rows of a reward call belong together, and scores relative to their group. Standard library only."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Any

from trl_grpo_ext.rewards.calling_trainer import in_evaluation, rows_per_group

Score = float | None


def _runs(prompts: Sequence[Any]) -> list[range]:
    starts = [row for row in range(len(prompts)) if row == 0 or prompts[row] != prompts[row - 1]]
    groups = [range(start, end) for start, end in zip(starts, [*starts[1:], len(prompts)], strict=True)]
    sizes = [len(group) for group in groups]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"Groups, that is runs of rows with the same prompt, must have one size, but have {sizes[:8]}: give "
            "group_size=<num_generations>, because prompts repeat or a group was cut."
        )
    return groups


def _chunks(prompts: Sequence[Any], size: int) -> list[range]:
    if len(prompts) % size:
        raise ValueError(
            f"group_size must divide the rows of a reward call ({len(prompts)}), not be {size}: groups are split between "
            "processes. Set per_device_train_batch_size * steps_per_generation, and per_device_eval_batch_size, to "
            "multiples of num_generations."
        )
    groups = [range(start, start + size) for start in range(0, len(prompts), size)]
    for group in groups:
        if any(prompts[row] != prompts[group.start] for row in group):
            raise ValueError(
                f"Rows {group.start} to {group.stop - 1} of this reward call must be one group of group_size={size}, "
                "but their prompts differ; set group_size to the trainer's num_generations, and "
                "per_device_train_batch_size * steps_per_generation to a multiple of it."
            )
    return groups


def check_group_size(group_size: int | None) -> int | None:
    """Return `group_size`.

    Raises:
        ValueError: neither None nor a whole number of at least 1.
    """
    whole = isinstance(group_size, int) and not isinstance(group_size, bool) and group_size >= 1
    if group_size is not None and not whole:
        raise ValueError(f"group_size must be None or a whole number of at least 1, not {group_size!r}.")
    return group_size


def find_groups(prompts: Sequence[Any], group_size: int | None = None) -> list[range]:
    """Split the rows of one reward call into groups of completions of the same prompt.

    TRL hands a reward function the completions of a prompt in consecutive rows. Their number is the trainer's
    `num_generations`, in evaluation its `num_generations_eval`, read from the trainer that is calling (see
    `calling_trainer`). Where none is, in a worker process or in a call by hand, it is `group_size`, and without that a
    group is a maximal run of equal prompts, all of one length.

    Args:
        prompts: one prompt per row: strings or message lists, compared with `==`.
        group_size: rows per group where no trainer is calling; None (default) reads the groups off the prompts.

    Returns:
        The rows of each group, in order; together they cover every row once.

    Raises:
        ValueError: a number of rows that the size does not divide, or a group with two different prompts: a group is
            split between processes; runs of unequal length; a `group_size` other than that of the training trainer.
    """
    size = check_group_size(group_size)
    actual = rows_per_group()
    if size is not None and actual not in (None, size) and not in_evaluation():
        raise ValueError(f"group_size must be the trainer's num_generations ({actual}), not {size}; leave it out.")
    size = size if actual is None else actual
    return _runs(prompts) if size is None else _chunks(prompts, size)


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


def win_shares(group: Sequence[int], first_wins: Mapping[tuple[int, int], Any]) -> dict[int, Any]:
    """Return each row's mean gain over the other rows of its group; a row with a failed pair has that exception.

    Args:
        group: the rows of one group. A single row has nothing to be compared with and gets None.
        first_wins: for each pair (i, j) of them with i < j, what i gained: 0 to 1, or an exception. j gained the rest.
    """
    gained: dict[int, list[Any]] = {row: [] for row in group}
    for first, second in combinations(group, 2):
        share = first_wins[first, second]
        gained[first].append(share)
        gained[second].append(share if isinstance(share, Exception) else 1.0 - share)
    return {row: _mean_gain(shares) for row, shares in gained.items()}


def _mean_gain(shares: Sequence[Any]) -> Any:
    for share in shares:
        if isinstance(share, Exception):
            return share
    return fmean(shares) if shares else None

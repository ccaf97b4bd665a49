"""Which rollouts teach: zero-variance groups, filters inside a group, and prompts drawn again.

Pure functions over tensors and lists. Rows of a group are contiguous, as in TRL; a row is one completion. A reward of
NaN is a row that nobody scored.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from trl_grpo_ext.advantages import constant_groups

GroupFilter = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Rewards of float32 that differ by rounding only are equal.
_EQUAL = 1e-6
# Loss types that take a mean over rows, whose weight a dropped row would otherwise keep. The others divide by tokens.
_MEAN_OVER_ROWS = frozenset({"grpo", "sapo", "dr_grpo", "luspo"})

ZERO_VARIANCE_POLICIES = ("keep", "keep_for_normaliser", "drop")


def zero_variance_reasons(rewards: torch.Tensor, num_generations: int) -> dict[str, int]:
    """Count the zero-variance groups by reason.

    `unscored`: fewer than two valid rewards. `solved` and `failed`: every reward is the highest, or the lowest, of the
    whole batch. `constant`: the rest, also when the whole batch holds one value.

    Args:
        rewards: (rows,), NaN for a row without a reward.
        num_generations: rows per group.
    """
    groups = rewards.view(-1, num_generations)
    dead = constant_groups(rewards, num_generations)
    unscored = dead & ((~groups.isnan()).sum(dim=1) < 2)
    mean = groups.nanmean(dim=1)
    known = rewards[~rewards.isnan()]
    solved, failed = torch.zeros_like(dead), torch.zeros_like(dead)
    if known.numel() and known.max() - known.min() > _EQUAL:
        solved = dead & ~unscored & (mean >= known.max() - _EQUAL)
        failed = dead & ~unscored & (mean <= known.min() + _EQUAL)
    reasons = {
        "unscored": unscored,
        "solved": solved,
        "failed": failed,
        "constant": dead & ~unscored & ~solved & ~failed,
    }
    return {name: int(groups.sum()) for name, groups in reasons.items()}


def withhold_rows(
    batch: dict[str, Any], rows: torch.Tensor, counts: tuple[int, int, int], policy: str, loss_type: str
) -> dict[str, Any]:
    """Take rows out of the loss of a scored batch, at unchanged shapes.

    `keep_for_normaliser`: their tokens leave the loss, KL term included, and still count in its normaliser. `drop`:
    they leave the normaliser too. Loss types that average over rows get the factor `loss_scale` =
    rows / rows that stay, those that divide by tokens a smaller `num_items_in_batch`.

    Args:
        batch: what `_generate_and_score_completions` returned.
        rows: (rows of this rank,), bool: those to take out.
        counts: over all ranks, the number of rows, of rows that stay, and of tokens that stay.
        policy: "keep_for_normaliser" or "drop".
        loss_type: TRL's.

    Returns:
        A new dict; the tensors of `batch` are not written to.
    """
    total_rows, kept_rows, kept_tokens = counts
    batch = batch | {"completion_mask": batch["completion_mask"].masked_fill(rows.unsqueeze(1), 0)}
    if policy == "keep_for_normaliser":
        return batch
    # A batch without a row that stays has the loss 0 whatever it is divided by.
    items = torch.as_tensor(max(kept_tokens, 1), device=rows.device)
    scale = total_rows / kept_rows if kept_rows and loss_type in _MEAN_OVER_ROWS else 1.0
    return batch | {"num_items_in_batch": items, "loss_scale": torch.tensor(scale, device=rows.device)}


def shortest(rewards: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Score = -length: the shortest completions stay (GFPO, arXiv 2508.09726, "Shortest k/G").

    Args:
        rewards: (groups, num_generations).
        lengths: (groups, num_generations), tokens.
    """
    return -lengths.to(rewards)


def reward_per_token(rewards: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Score = reward / length: the most efficient completions stay (GFPO, arXiv 2508.09726, "Token Efficiency").

    Args:
        rewards: (groups, num_generations).
        lengths: (groups, num_generations), tokens; 0 counts as 1.
    """
    return rewards / lengths.clamp(min=1).to(rewards)


GROUP_FILTERS: dict[str, GroupFilter] = {"shortest": shortest, "reward_per_token": reward_per_token}


def rejected_by_filter(
    rewards: torch.Tensor, lengths: torch.Tensor, num_generations: int, keep: int, score: GroupFilter
) -> torch.Tensor:
    """Return the rows that are not among the `keep` best of their group (GFPO, arXiv 2508.09726).

    Equal scores: the earlier row stays. A row without a reward, or with a score that is NaN, comes last.

    Args:
        rewards: (rows,), NaN for a row without a reward.
        lengths: (rows,), completion tokens.
        num_generations: rows per group.
        keep: rows of each group that stay.
        score: takes rewards and lengths, both (groups, num_generations), and returns scores of that shape.

    Returns:
        (rows,), bool.

    Raises:
        ValueError: the scores have another shape.
    """
    groups = rewards.view(-1, num_generations)
    scores = score(groups, lengths.view(-1, num_generations))
    if scores.shape != groups.shape:
        raise ValueError(
            f"group_filter must return one score per completion, shape {tuple(groups.shape)}; got {tuple(scores.shape)}."
        )
    scores = scores.masked_fill(groups.isnan() | scores.isnan(), -torch.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)
    rejected = torch.ones_like(groups, dtype=torch.bool)
    return rejected.scatter(1, order[:, :keep], False).flatten()


def groups_to_redraw(dead: int, num_generations: int, num_processes: int) -> int:
    """Return the smallest number of groups >= `dead` whose rows divide evenly among the ranks."""
    count = dead
    while count * num_generations % num_processes:
        count += 1
    return count


def draw_indices(order: Iterable[int], exclude: Callable[[int], bool], count: int) -> list[int]:
    """Take the first `count` indices that are not excluded; from the beginning again when there are fewer.

    Args:
        order: indices of the dataset, the same on every rank.
        exclude: whether an index may not be drawn.
        count: how many.

    Returns:
        `count` indices; none if every index is excluded.
    """
    drawn: list[int] = []
    for index in order:
        if len(drawn) == count:
            break
        if not exclude(index):
            drawn.append(index)
    return [drawn[i % len(drawn)] for i in range(count)] if drawn else []


def replacements(dead: torch.Tensor, redrawn_dead: torch.Tensor) -> list[tuple[int, int]]:
    """Pair each zero-variance group with a redrawn group that is not one, in order, until either runs out.

    Args:
        dead: (groups,), bool.
        redrawn_dead: (redrawn groups,), bool.

    Returns:
        (position in the batch, position among the redrawn groups).
    """
    slots = dead.nonzero().flatten().tolist()
    fresh = (~redrawn_dead).nonzero().flatten().tolist()
    return list(zip(slots, fresh, strict=False))


def row_sources(groups: int, pairs: Iterable[tuple[int, int]], num_generations: int) -> list[int]:
    """Return, for each row of the new batch, its row in (old batch followed by redrawn batch).

    Args:
        groups: groups of the batch.
        pairs: as `replacements` returns.
        num_generations: rows per group.
    """
    of_group = list(range(groups))
    for slot, fresh in pairs:
        of_group[slot] = groups + fresh
    return [group * num_generations + row for group in of_group for row in range(num_generations)]


def pad_columns(tensor: torch.Tensor, width: int, value: float, left: bool) -> torch.Tensor:
    """Widen a (rows, columns, ...) tensor to `width` columns.

    Args:
        tensor: at least two dimensions.
        width: columns of the result.
        value: what is filled in.
        left: fill in before the columns (prompts), not after them (completions).
    """
    missing = width - tensor.shape[1]
    if missing <= 0:
        return tensor
    filling = tensor.new_full((tensor.shape[0], missing, *tensor.shape[2:]), value)
    return torch.cat([filling, tensor] if left else [tensor, filling], dim=1)

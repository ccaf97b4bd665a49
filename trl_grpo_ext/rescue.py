"""Dead groups with a low reward get some of their completions sampled again, with hints in the prompt.

What `ExtendedGRPOTrainer` does for a rescuer such as `experience.RescueCallback`: it asks which prompts are due and
what their hinted prompts are, samples r completions of each, the same number of rows on every rank, and puts them in
the place of the last r of the group's G where that makes the rewards differ. Advantages are then computed over the
mixed group. The hinted rewards are in no metric of TRL's: those stand as the sampling without hints left them.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from accelerate.utils import broadcast_object_list, gather_object

from trl_grpo_ext.advantages import constant_groups
from trl_grpo_ext.off_policy import PLAIN_PROMPT, with_sampling_logps
from trl_grpo_ext.redraw import Rows, merge, merge_logs, score
from trl_grpo_ext.sampling import groups_to_redraw
from trl_grpo_ext.scoring import Scored


class Rescuer(Protocol):
    """Decides which groups are sampled again, and with which prompts.

    Attributes:
        rerolls: completions of a group that are sampled again, r.
        off_policy: learn them with the plain prompt; otherwise with the hinted one.
    """

    rerolls: int
    off_policy: bool

    def due(self, prompts: Sequence[Any], rewards: Sequence[float | None], progress: float) -> list[int]:
        """Return the groups to rescue, the same on every rank; called once for each generation, on every rank.

        Args:
            prompts: of every group, without experiences.
            rewards: of every group: the one reward of all its completions, None where they differ, NaN where one has
                no reward.
            progress: share of the training that is done, from 0 to 1.
        """

    def hinted(self, prompts: Sequence[Any]) -> list[Any]:
        """Return for each prompt one with hints in it, or None where there is no hint; called on rank 0."""


def rescue(trainer: Any, inputs: Rows, scored: Scored) -> tuple[Scored, bool]:
    """Replace r completions of the groups that are due by hinted ones, where that gives the group something to compare.

    Logs `experience/rescue_visits` (groups that are sampled again), `experience/rescued_share` (of all groups, those
    that were dead and are mixed now), `experience/dead_share_before` and `experience/dead_share_after`, and, when there
    was a rescue, `experience/hint_solve_rate` (hinted completions whose reward is above the group's) and
    `experience/reward_hinted` (their mean reward).

    Args:
        trainer: an ExtendedGRPOTrainer with a rescuer; every rank must call it.
        inputs: this rank's rows of the batch.
        scored: the batch.

    Returns:
        The new batch, and whether it differs from the old one.
    """
    size, totals = trainer.num_generations, scored.totals(trainer)
    dead = constant_groups(totals, size)
    rows = _hinted_rows(trainer, inputs, _due(trainer, inputs, totals, dead))
    log = {"rescue_visits": float(len(rows)), "dead_share_before": dead.float().mean().item()}
    pairs: list[tuple[int, int]] = []
    if rows:
        fresh, logs = _sample(trainer, list(rows.values()))
        hinted = fresh.totals(trainer).view(-1, trainer.rescuer.rerolls)
        log |= _outcome(totals.view(-1, size), hinted, list(rows))
        pairs = _mixed(totals.view(-1, size), hinted, list(rows))
    if pairs:
        if trainer.rescuer.off_policy:
            scored.output = with_sampling_logps(trainer, scored.output)
        sources = row_sources(len(totals), pairs, size, trainer.rescuer.rerolls)
        scored = merge(trainer, scored, fresh, torch.tensor(sources, device=totals.device))
        merge_logs(trainer._logs, logs, sources)
    log |= {"rescued_share": len(pairs) / len(dead), "dead_share_after": (dead.sum().item() - len(pairs)) / len(dead)}
    for name, value in log.items():
        trainer._metrics["train"][f"experience/{name}"].append(value)
    return scored, bool(pairs)


def row_sources(rows: int, pairs: Sequence[tuple[int, int]], num_generations: int, rerolls: int) -> list[int]:
    """Return, for each row of the new batch, its row in (old batch followed by hinted rows).

    Args:
        rows: of the old batch.
        pairs: (group of the old batch, group of hinted rows).
        num_generations: rows per group of the old batch; its last `rerolls` make room.
        rerolls: rows per group of hinted rows.
    """
    sources = list(range(rows))
    for group, hinted in pairs:
        first = (group + 1) * num_generations - rerolls
        sources[first : first + rerolls] = range(rows + hinted * rerolls, rows + (hinted + 1) * rerolls)
    return sources


def _first_rows(trainer: Any, inputs: Rows) -> list[tuple[int, dict[str, Any]]]:
    """(group, its first row) of the groups that begin among this rank's rows."""
    size, first = trainer.num_generations, trainer.accelerator.process_index * len(inputs)
    return [((first + i) // size, row) for i, row in enumerate(inputs) if (first + i) % size == 0]


def _plain(row: dict[str, Any]) -> Any:
    return row["prompt"] if row.get(PLAIN_PROMPT) is None else row[PLAIN_PROMPT]


def _due(trainer: Any, inputs: Rows, totals: torch.Tensor, dead: torch.Tensor) -> list[int]:
    groups = totals.view(len(dead), -1)
    rewards = [
        float("nan") if group.isnan().any() else group[0].item() if one_reward else None
        for group, one_reward in zip(groups, dead.tolist(), strict=True)
    ]
    prompts = gather_object([_plain(row) for _, row in _first_rows(trainer, inputs)])
    progress = trainer.state.global_step / max(trainer.state.max_steps, 1)
    return trainer.rescuer.due(prompts, rewards, min(progress, 1.0))


def _hinted_rows(trainer: Any, inputs: Rows, due: list[int]) -> dict[int, dict[str, Any]]:
    """The row of each group that is due and for which there is a hint, with the hint in its prompt."""
    if not due:
        return {}
    rows = dict(gather_object([(group, row) for group, row in _first_rows(trainer, inputs) if group in set(due)]))
    prompts = [_plain(rows[group]) for group in due]
    found = [trainer.rescuer.hinted(prompts) if trainer.accelerator.is_main_process else []]
    broadcast_object_list(found)
    return {
        group: rows[group] | {"prompt": hinted, PLAIN_PROMPT: plain}
        for group, plain, hinted in zip(due, prompts, found[0], strict=True)
        if hinted is not None
    }


def _sample(trainer: Any, rows: Rows) -> tuple[Scored, dict[str, Any]]:
    """Sample and score r completions of each row; past the class's own method, which injects nothing a second time."""
    rerolls, ranks = trainer.rescuer.rerolls, trainer.accelerator.num_processes
    wanted = groups_to_redraw(len(rows), rerolls, ranks)
    world = [rows[group % len(rows)] for group in range(wanted) for _ in range(rerolls)]
    count = len(world) // ranks
    first = trainer.accelerator.process_index * count
    with _rescuing(trainer, rerolls):
        generate = partial(type(trainer)._generate_and_score_completions, trainer)
        return score(trainer, copy.deepcopy(world[first : first + count]), generate)


@contextmanager
def _rescuing(trainer: Any, rerolls: int) -> Iterator[None]:
    size, trainer.num_generations, trainer.is_rescuing = trainer.num_generations, rerolls, True
    try:
        yield
    finally:
        trainer.num_generations, trainer.is_rescuing = size, False


def _mixed(groups: torch.Tensor, hinted: torch.Tensor, due: list[int]) -> list[tuple[int, int]]:
    """(group, its hinted rows) where the two together are no longer of one reward."""
    kept = groups[due, : groups.shape[1] - hinted.shape[1]]
    still = constant_groups(torch.cat([kept, hinted[: len(due)]], dim=1).flatten(), groups.shape[1])
    return [(group, row) for row, group in enumerate(due) if not still[row]]


def _outcome(groups: torch.Tensor, hinted: torch.Tensor, due: list[int]) -> dict[str, float]:
    rewards = hinted[: len(due)]
    solved = (rewards > groups[due, :1] + 1e-6).float().mean().item()
    known = rewards[~rewards.isnan()]
    return {"hint_solve_rate": solved} | ({"reward_hinted": known.mean().item()} if len(known) else {})

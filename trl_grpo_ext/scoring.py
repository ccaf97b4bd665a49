"""From the rewards of a generation to its advantages, and what is logged about them.

Everything here runs after TRL's own scoring, on what that returned. "World" rows are those of all ranks, in the order
of the gathered rewards: groups contiguous, this rank's rows at `process_index * local rows`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trl_grpo_ext._compat import group_size, skipped_rows_count_as_zero, stop_token_ids
from trl_grpo_ext.advantages import constant_groups, group_advantages
from trl_grpo_ext.kl import penalize_rewards
from trl_grpo_ext.loss_inputs import token_mask
from trl_grpo_ext.policy_metrics import set_last
from trl_grpo_ext.rewards.skips import correct_skipped_rows, total_rewards
from trl_grpo_ext.sampling import GROUP_FILTERS, GroupFilter, rejected_by_filter, withhold_rows


@dataclass
class Scored:
    """One generation with its rewards.

    Args:
        output: what TRL returned for this rank's rows.
        rewards_per_func: (world rows, functions), NaN for None.
        lengths: (world rows,), completion tokens.
        truncated: (world rows,), bool: ended by the length limit.
    """

    output: dict[str, Any]
    rewards_per_func: torch.Tensor
    lengths: torch.Tensor
    truncated: torch.Tensor

    def totals(self, trainer: Any) -> torch.Tensor:
        """Return the weighted sum of the rewards of each world row, NaN where there is none."""
        return total_rewards(self.rewards_per_func, trainer.reward_weights)


def mode_of(trainer: Any) -> str:
    """Return the name under which TRL keeps the metrics of now: "train" or "eval"."""
    return "train" if trainer.model.training else "eval"


def local_rows(trainer: Any, world: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a tensor over the rows of all ranks."""
    count = len(world) // trainer.accelerator.num_processes
    first = trainer.accelerator.process_index * count
    return world[first : first + count]


def lengths_and_truncation(trainer: Any, completion_ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the length of every world row, and whether its last token is neither a stop token nor padding."""
    stops = stop_token_ids(trainer)
    facts = [[len(ids), bool(len(ids)) and ids[-1] not in stops] for ids in completion_ids]
    world = trainer.accelerator.gather(torch.tensor(facts, device=trainer.accelerator.device))
    return world[:, 0], world[:, 1].bool()


def completion_mask(trainer: Any, scored: Scored) -> torch.Tensor:
    """Return (local rows, T): the tokens of each completion, also of those that TRL masks because of their length."""
    columns = torch.arange(scored.output["completion_ids"].shape[1], device=scored.lengths.device)
    return columns < local_rows(trainer, scored.lengths).unsqueeze(1)


def replace_reward(trainer: Any, scored: Scored, index: int, rewards: torch.Tensor) -> None:
    """Put the rewards of this rank's rows in the place of what reward function `index` returned, in logs too."""
    world = trainer.accelerator.gather(rewards.to(scored.rewards_per_func))
    scored.rewards_per_func = scored.rewards_per_func.clone()
    scored.rewards_per_func[:, index] = world
    name, metrics = trainer.reward_func_names[index], trainer._metrics[mode_of(trainer)]
    metrics[f"rewards/{name}/mean"][-1] = world.mean().item()
    metrics[f"rewards/{name}/std"][-1] = world.std().item() if len(world) > 1 else 0.0
    replace_tail(trainer._logs["rewards"][name], world.tolist())


def replace_tail(logged: Any, values: list[Any]) -> None:
    """Overwrite the newest entries of one of TRL's bounded queues."""
    for _ in range(min(len(logged), len(values))):
        logged.pop()
    logged.extend(values)


def with_kl_in_reward(trainer: Any, scored: Scored, totals: torch.Tensor, old_logps: torch.Tensor) -> torch.Tensor:
    """Return the world totals less the KL penalty of each completion (RLOO, arXiv 2402.14740).

    Over the tokens of the loss: a completion that `mask_truncated_completions` takes out of it has no penalty.
    """
    penalized = penalize_rewards(
        local_rows(trainer, totals),
        old_logps,
        scored.output["ref_per_token_logps"],
        token_mask(scored.output),
        trainer.beta,
        trainer.args.kl_estimator,
    )
    return trainer.accelerator.gather(penalized.contiguous())


def group_filter(spec: str, load: Callable[[str, str], Any]) -> GroupFilter:
    """Return a filter of this package by name, or the function that `package.module:function` names."""
    return load("group_filter", spec) if ":" in spec else GROUP_FILTERS[spec]


def filtered(trainer: Any, scored: Scored, totals: torch.Tensor, score: GroupFilter | None) -> torch.Tensor:
    """Return totals with NaN for the completions that the group filter rejects."""
    if score is None or not trainer.model.training:
        return totals
    rejected = rejected_by_filter(totals, scored.lengths, group_size(trainer), trainer.args.group_filter_keep, score)
    trainer._metrics["train"]["groups/filtered_share"].append(rejected.float().mean().item())
    return totals.masked_fill(rejected, torch.nan)


def set_advantages(trainer: Any, scored: Scored, totals: torch.Tensor) -> None:
    """Replace the advantages by `group_advantages` of these world totals, in the completions table too."""
    config = trainer.args.advantage_config(group_size(trainer))
    advantages = group_advantages(totals, config)
    scored.output["advantages"] = local_rows(trainer, advantages).to(scored.output["advantages"])
    replace_tail(trainer._logs["advantages"], advantages.tolist())


def keep_trl_advantages(trainer: Any, scored: Scored) -> None:
    """Leave TRL's advantages, but for rows without a reward where TRL takes them for reward 0."""
    if skipped_rows_count_as_zero():
        correct_skipped_rows(trainer, scored.output, scored.rewards_per_func)


def withhold_constant_groups(trainer: Any, scored: Scored, totals: torch.Tensor) -> None:
    """Take the zero-variance groups out of the loss as `zero_variance_groups` says."""
    policy = trainer.args.zero_variance_groups
    if policy == "keep" or not trainer.model.training:
        return
    size = group_size(trainer)
    dead = constant_groups(totals, size).repeat_interleave(size)
    rows = local_rows(trainer, dead)
    mask = token_mask(scored.output)
    tokens = trainer.accelerator.reduce(mask[~rows].sum().float(), reduction="sum")
    counts = len(dead), int((~dead).sum()), int(tokens)
    scored.output = withhold_rows(scored.output, rows, counts, policy, trainer.loss_type)


def count_items(trainer: Any, scored: Scored) -> None:
    """Count the tokens that the loss counts; TRL 0.24 counts those of masked completions too."""
    mask = token_mask(scored.output)
    scored.output["num_items_in_batch"] = trainer.accelerator.reduce(mask.sum().float(), reduction="sum").to(
        mask.dtype
    )


def log_scores(trainer: Any, scored: Scored, totals: torch.Tensor, before: dict[str, int]) -> None:
    """Log, and correct, the metrics of a generation; the same names and meanings with every TRL version.

    `reward`: mean of the total rewards. `reward_std`: mean over the groups of the standard deviation (n - 1) inside
    the group. `reward_std_all`: standard deviation (n - 1) over all rows. `groups/dead_share`: share of groups whose
    rewards are all equal, or fewer than two. `completions/truncated_share`: share of completions that were cut off.
    Rows without a reward are left out of the first three.
    """
    size = group_size(trainer)
    groups, known = totals.view(-1, size), totals[~totals.isnan()]
    inside = [_std(group[~group.isnan()]) for group in groups]
    inside = [std for std in inside if std == std]
    values = {
        "reward": known.mean().item() if len(known) else float("nan"),
        "reward_std": sum(inside) / len(inside) if inside else float("nan"),
        "reward_std_all": _std(known),
        "groups/dead_share": constant_groups(totals, size).float().mean().item(),
        "completions/truncated_share": scored.truncated.float().mean().item(),
    }
    for name, value in values.items():
        set_last(trainer._metrics[mode_of(trainer)], name, value, before.get(name, 0))


def _std(known: torch.Tensor) -> float:
    return known.std().item() if len(known) > 1 else float("nan")

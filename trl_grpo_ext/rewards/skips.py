"""Rows without a reward, on TRL versions that would count them as reward 0.

A row whose rewards are all None says nothing about the policy. TRL >= 1.6 leaves it out of its group's baseline and
gives it advantage 0. Older versions sum None as 0: the row is pushed away from, or towards, by a reward that nobody
gave, and it moves the baseline of the others. What stands here gives those versions the newer behaviour.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from trl_grpo_ext._attach import calling_trainer
from trl_grpo_ext._compat import skipped_rows_count_as_zero

# TRL's guard against a standard deviation of 0.
_EPSILON = 1e-4
_METHODS = ("_calculate_rewards", "_generate_and_score_completions")


def _nan_std(values: torch.Tensor) -> torch.Tensor:
    """Standard deviation (n - 1) along the last dimension over what is not NaN; NaN below two such values."""
    count = (~values.isnan()).sum(dim=-1)
    variance = (values - values.nanmean(dim=-1, keepdim=True)).square().nansum(dim=-1) / (count - 1)
    return torch.where(count > 1, variance, torch.nan).sqrt()


def total_rewards(rewards_per_func: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return sum_k w_k * r_k per row, over the rewards that are not NaN; NaN for a row that has none.

    Args:
        rewards_per_func: (rows, functions), NaN for None.
        weights: (functions,).

    Returns:
        (rows,).
    """
    totals = (rewards_per_func * weights.to(rewards_per_func)).nansum(dim=1)
    return totals.masked_fill(rewards_per_func.isnan().all(dim=1), torch.nan)


def _scale(groups: torch.Tensor, scale_rewards: str) -> torch.Tensor:
    """Standard deviation for each group: its own, or that of the whole batch; (groups, 1)."""
    if scale_rewards == "batch":
        return _nan_std(groups.flatten()).expand(len(groups)).unsqueeze(1)
    return _nan_std(groups).unsqueeze(1)


def advantages_without_skipped(rewards: torch.Tensor, num_generations: int, scale_rewards: str) -> torch.Tensor:
    """Group-relative advantages in which skipped rows have no part (GRPO, arXiv 2402.03300, over the valid rows).

    A_i = (r_i - mean(r_valid of the group)) / (std + 1e-4), with the standard deviation (n - 1) over the valid rows of
    the group ("group") or of the whole batch ("batch"), and without the division for "none". A_i = 0 for a skipped
    row, and for the only valid row of a group.

    Args:
        rewards: (rows,), groups contiguous, NaN for a skipped row.
        num_generations: rows per group.
        scale_rewards: "group", "batch" or "none".

    Returns:
        (rows,), finite.
    """
    groups = rewards.view(-1, num_generations)
    advantages = groups - groups.nanmean(dim=1, keepdim=True)
    if scale_rewards != "none":
        advantages = advantages / (_scale(groups, scale_rewards) + _EPSILON)
    return torch.nan_to_num(advantages, nan=0.0).flatten()


def _group_size(trainer: Any) -> int:
    """Rows per group of the current mode; some versions have another number for evaluation."""
    evaluation = getattr(trainer, "num_generations_eval", trainer.num_generations)
    return trainer.num_generations if trainer.model.training else evaluation


def _correct_logs(trainer: Any, rewards: torch.Tensor, advantages: torch.Tensor) -> None:
    """Replace what TRL has just logged for this generation: it counted the skipped rows."""
    metrics = trainer._metrics["train" if trainer.model.training else "eval"]
    stds = _scale(rewards.view(-1, _group_size(trainer)), trainer.scale_rewards)
    metrics["reward"][-1] = rewards.nanmean().item()
    metrics["reward_std"][-1] = stds.nanmean().item()
    # A group with fewer than two valid rows has no spread to learn from either.
    metrics["frac_reward_zero_std"][-1] = (
        torch.nan_to_num(stds, nan=0.0).isclose(stds.new_zeros(())).float().mean().item()
    )
    logged = trainer._logs["advantages"]
    for _ in range(min(len(logged), len(advantages))):
        logged.pop()
    logged.extend(advantages.tolist())


def correct_skipped_rows(trainer: Any, output: dict[str, Any], rewards_per_func: torch.Tensor) -> None:
    """Replace the advantages of the groups that have skipped rows; of every group when the scale is the batch's.

    For subclasses that call it themselves, after TRL's `_generate_and_score_completions`; `exclude_skipped` wraps it
    around a stock trainer. Batches without a skipped row are left alone.

    Args:
        trainer: a GRPOTrainer of a TRL version that counts skipped rows as reward 0.
        output: what `_generate_and_score_completions` returned; its `advantages` are replaced.
        rewards_per_func: what `_calculate_rewards` returned: (rows of all ranks, functions), NaN for None.
    """
    rewards = total_rewards(rewards_per_func, trainer.reward_weights)
    skipped = rewards.isnan()
    if not skipped.any():
        return
    corrected = advantages_without_skipped(rewards, _group_size(trainer), trainer.scale_rewards)
    local = output["advantages"]
    first = trainer.accelerator.process_index * len(local)
    output["advantages"] = corrected[first : first + len(local)].to(local)
    _correct_logs(trainer, rewards, corrected)


def exclude_skipped(trainer: Any) -> None:
    """Give rows whose rewards are all None advantage 0 and no share in their group's baseline.

    Wraps two methods of this one trainer; calling it again does nothing. With TRL >= 1.6, which does it by itself, it
    does nothing. Every rank must call it. Batches without a skipped row keep TRL's own advantages, bit for bit. The
    logged `reward`, `reward_std`, `frac_reward_zero_std` and the advantages of the completions table are corrected
    too. As in TRL >= 1.6, a skipped row's tokens still count in the loss's normaliser, and its KL term (beta > 0)
    stays.

    Args:
        trainer: TRL's GRPOTrainer, or a subclass that computes advantages as it does. One with advantages of its own
            has to treat NaN rows itself.

    Raises:
        TypeError: not a GRPO trainer.
        ValueError: TRL < 1.6 with a `multi_objective_aggregation` other than "sum_then_normalize".
    """
    missing = [name for name in _METHODS if not hasattr(trainer, name)]
    if missing:
        raise TypeError(f"exclude_skipped needs a GRPOTrainer; {type(trainer).__name__} has no {missing[0]!r}.")
    if not skipped_rows_count_as_zero():
        return
    aggregation = getattr(trainer, "multi_objective_aggregation", "sum_then_normalize")
    if aggregation != "sum_then_normalize":
        raise ValueError(
            f"exclude_skipped can't correct multi_objective_aggregation={aggregation!r} of this TRL; use "
            '"sum_then_normalize", or TRL >= 1.6, which leaves skipped rows out by itself.'
        )
    if hasattr(trainer._calculate_rewards, "_excludes_skipped"):
        return
    calculate: Callable[..., torch.Tensor] = trainer._calculate_rewards
    generate: Callable[..., dict[str, Any]] = trainer._generate_and_score_completions
    gathered: list[torch.Tensor] = []

    @functools.wraps(calculate)
    def calculate_and_keep(*args: Any, **kwargs: Any) -> torch.Tensor:
        gathered[:] = [calculate(*args, **kwargs)]
        return gathered[0]

    @functools.wraps(generate)
    def generate_and_correct(*args: Any, **kwargs: Any) -> dict[str, Any]:
        output = generate(*args, **kwargs)
        correct_skipped_rows(trainer, output, gathered.pop())
        return output

    calculate_and_keep._excludes_skipped = True  # type: ignore[attr-defined]
    trainer._calculate_rewards = calculate_and_keep
    trainer._generate_and_score_completions = generate_and_correct


class ExcludeSkipped(TrainerCallback):
    """`exclude_skipped` for the trainer that it is given to: `GRPOTrainer(..., callbacks=[ExcludeSkipped()])`.

    Also works when added with `add_callback` before `train()`, and for several trainers at once.

    Raises:
        RuntimeError: at the start of training, when called by something else than a `transformers.Trainer`.
        TypeError: a trainer that is not a GRPO trainer.
    """

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the trainer under construction, so that evaluation without training is covered too."""
        trainer = calling_trainer()
        if trainer is not None:
            exclude_skipped(trainer)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach when the callback was added after the trainer was made."""
        trainer = calling_trainer()
        if trainer is None:
            raise RuntimeError(
                "ExcludeSkipped found no trainer among its callers; call exclude_skipped(trainer) instead."
            )
        exclude_skipped(trainer)

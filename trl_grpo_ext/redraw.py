"""Bounded dynamic sampling: groups with nothing to compare make room for other prompts (DAPO, arXiv 2503.14476).

DAPO samples until the batch is full. Here there are at most `dynamic_sampling_rounds` rounds, each with as many new
prompts as there are dead groups, the same number of rows on every rank; what is dead after them stays. Every rank
draws the same prompts, from a generator of its own.
"""

import copy
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object

from trl_grpo_ext._compat import pad_token_id
from trl_grpo_ext.advantages import constant_groups
from trl_grpo_ext.off_policy import OFF_POLICY, PLAIN_PROMPT, with_sampling_logps
from trl_grpo_ext.sampling import draw_indices, groups_to_redraw, pad_columns, replacements, row_sources
from trl_grpo_ext.scoring import Scored, count_items, local_rows, replace_tail

Rows = list[dict[str, Any]]
Generate = Callable[[Rows], Any]


def redraw(trainer: Any, inputs: Rows, scored: Scored) -> tuple[Scored, bool]:
    """Replace dead groups by groups of other prompts, for at most `dynamic_sampling_rounds` rounds.

    Logs `sampling/rounds`, `sampling/groups_redrawn`, `sampling/groups_replaced` and, the rest, as a share,
    `sampling/dead_share_left`.

    Args:
        trainer: an ExtendedGRPOTrainer.
        inputs: this rank's rows of the batch.
        scored: the batch.

    Returns:
        The new batch, and whether it differs from the old one.
    """
    size, counts = trainer.num_generations, {"rounds": 0, "groups_redrawn": 0, "groups_replaced": 0}
    used = _prompts(inputs)
    for _ in range(trainer.args.dynamic_sampling_rounds):
        dead = constant_groups(scored.totals(trainer), size)
        wanted = groups_to_redraw(int(dead.sum()), size, trainer.accelerator.num_processes)
        rows = _draw(trainer, inputs, wanted, used, counts["rounds"]) if wanted else []
        if not rows:
            break
        used |= _prompts(rows)
        fresh, logs = score(trainer, rows)
        if OFF_POLICY in scored.output:
            fresh.output = with_sampling_logps(trainer, fresh.output)
        pairs = replacements(dead, constant_groups(fresh.totals(trainer), size))
        sources = row_sources(len(dead), pairs, size)
        scored = merge(trainer, scored, fresh, torch.tensor(sources, device=dead.device))
        merge_logs(trainer._logs, logs, sources)
        counts["rounds"] += 1
        counts["groups_redrawn"] += wanted
        counts["groups_replaced"] += len(pairs)
    _log(trainer, counts, constant_groups(scored.totals(trainer), size))
    return scored, counts["groups_replaced"] > 0


def _log(trainer: Any, counts: dict[str, int], dead: torch.Tensor) -> None:
    metrics = trainer._metrics["train"]
    for name, count in counts.items():
        metrics[f"sampling/{name}"].append(float(count))
    metrics["sampling/dead_share_left"].append(dead.float().mean().item())


def _prompts(rows: Rows) -> set[str]:
    """The prompts of all ranks' rows as the dataset has them, in a form that can be compared, texts and messages alike."""
    return set(gather_object([repr(row.get(PLAIN_PROMPT, row["prompt"])) for row in rows]))


def _order(trainer: Any, attempt: int) -> Iterable[int]:
    """All rows of the dataset: at random, or the nearest to the curriculum's target first."""
    if trainer.curriculum is not None:
        return trainer.curriculum.nearest()
    # `_step` too: one optimizer step may hold several generations. Steps alone repeat after a resume, which is right.
    seed = hash((trainer.args.seed, trainer.state.global_step, trainer._step, attempt)) % 2**63
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(len(trainer.train_dataset), generator=generator).tolist()


def _draw(trainer: Any, inputs: Rows, groups: int, used: set[str], attempt: int) -> Rows:
    """This rank's rows of `groups` prompts that are not in use, each `num_generations` times; none if all are."""
    dataset, columns = trainer.train_dataset, inputs[0].keys()
    indices = draw_indices(_order(trainer, attempt), lambda index: repr(dataset[index]["prompt"]) in used, groups)
    rows = [{name: dataset[index][name] for name in columns & dataset[index].keys()} for index in indices]
    world = [row for row in rows for _ in range(trainer.num_generations)]
    count = len(world) // trainer.accelerator.num_processes
    first = trainer.accelerator.process_index * count
    # TRL 0.24 takes the last message of a prefilled prompt away from the row.
    return copy.deepcopy(world[first : first + count])


def score(trainer: Any, rows: Rows, generate: Generate | None = None) -> tuple[Scored, dict[str, Any]]:
    """Generate and score; TRL's metrics and tables are kept apart.

    Args:
        trainer: an ExtendedGRPOTrainer.
        rows: this rank's rows, the same number on every rank, groups contiguous.
        generate: what to call; by default whatever is wrapped around the trainer.

    Returns:
        The batch, and the tables.
    """
    with _separate_logs(trainer) as logs:
        trainer.redrawn = None
        trainer.is_redrawing = True
        try:
            (generate or trainer._generate_and_score_completions)(rows)
        finally:
            trainer.is_redrawing = False
    return trainer.redrawn, logs


@contextmanager
def _separate_logs(trainer: Any) -> Iterator[dict[str, Any]]:
    metrics, logs = trainer._metrics, trainer._logs
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer._logs = {name: deque() if isinstance(kept, deque) else defaultdict(deque) for name, kept in logs.items()}
    try:
        yield trainer._logs
    finally:
        # A running total, not a list of measurements.
        if "num_tokens" in trainer._metrics["train"]:
            metrics["train"]["num_tokens"] = trainer._metrics["train"]["num_tokens"]
        trainer._metrics, trainer._logs = metrics, logs


def merge_logs(kept: dict[str, Any], fresh: dict[str, Any], sources: list[int]) -> None:
    """Make the tables of completions show the rows of the new batch."""
    for name, column in kept.items():
        if not isinstance(column, deque):
            merge_logs(column, fresh[name], sources)
            continue
        rows = [*list(column)[-len(sources) :], *fresh.get(name, ())]
        if len(column) >= len(sources) and len(rows) > max(sources):
            replace_tail(column, [rows[source] for source in sources])


def merge(trainer: Any, old: Scored, fresh: Scored, sources: torch.Tensor) -> Scored:
    """Return the batch whose world row i is row `sources[i]` of (old batch followed by fresh batch)."""

    def world(name: str) -> torch.Tensor:
        return torch.cat([getattr(old, name), getattr(fresh, name)])[sources]

    output = {
        name: _merge_value(trainer, name, value, fresh.output.get(name), sources) for name, value in old.output.items()
    }
    merged = Scored(output, world("rewards_per_func"), world("lengths"), world("truncated"))
    count_items(trainer, merged)
    return merged


def _merge_value(trainer: Any, name: str, old: Any, fresh: Any, sources: torch.Tensor) -> Any:
    if not isinstance(old, torch.Tensor) or old.dim() == 0:
        return old
    left, filling = name.startswith("prompt_"), pad_token_id(trainer) if name.endswith("_ids") else 0
    rows = [_gather(trainer.accelerator, tensor, left, filling) for tensor in (old, fresh)]
    if old.dim() > 1:
        width = max(tensor.shape[1] for tensor in rows)
        rows = [pad_columns(tensor, width, filling, left) for tensor in rows]
    return local_rows(trainer, torch.cat(rows)[sources])


def _gather(accelerator: Any, tensor: torch.Tensor, left: bool, filling: float) -> torch.Tensor:
    if tensor.dim() > 1:
        tensor = accelerator.pad_across_processes(tensor, dim=1, pad_index=filling, pad_first=left)
    return accelerator.gather(tensor.contiguous())

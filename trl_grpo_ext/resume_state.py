"""What a GRPO trainer knows besides what transformers keeps in a checkpoint: taken out of it, and put back.

One file per rank, `grpo_state_<rank>.pt`, read with `weights_only=True`. TRL keeps nothing of this:

- the place inside a generation (`_step`), and its completions where several optimizer steps share them
  (`steps_per_generation` above `gradient_accumulation_steps`, or `num_iterations` above 1);
- metrics, tables of completions and losses that were not logged yet;
- what reward functions and callbacks in this process have learned: those with `state_dict` and `load_state_dict`;
- the weights of a reference model that moves (`sync_ref_model`), in `reference.pt`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import ExportableState

REFERENCE = "reference.pt"
_LOSSES = ("_tr_loss", "_globalstep_last_logged")

logger = logging.getLogger(__name__)


def state_file(folder: Path, rank: int) -> Path:
    """Return the file of a rank in a checkpoint."""
    return folder / f"grpo_state_{rank}.pt"


def save_state(trainer: Any, folder: Path) -> None:
    """Write the state of this rank into a checkpoint; every rank does.

    Args:
        trainer: TRL's GRPOTrainer or one derived from it, after an optimizer step.
        folder: of the checkpoint.

    Raises:
        OSError, RuntimeError: it can't be written.
    """
    accelerator = trainer.accelerator
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(_state(trainer), state_file(folder, accelerator.process_index))
    if _reference_moves(trainer):
        with _whole_reference(trainer) as reference:
            if accelerator.is_main_process:
                torch.save(_plain(reference.state_dict()), folder / REFERENCE)


def load_state(trainer: Any, folder: Path) -> None:
    """Put the state of this rank back; called at the start of training, when transformers has loaded its part.

    A checkpoint without a state, or of another number of ranks, is gone on from as TRL does, with a warning: the next
    optimizer step samples new completions.

    Raises:
        ValueError: the run has other reward functions or callbacks than the checkpoint.
    """
    path = state_file(folder, trainer.accelerator.process_index)
    if not path.is_file():
        logger.warning("%s does not exist: the run goes on from this checkpoint, but not exactly.", path)
        return
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["ranks"] != trainer.accelerator.num_processes:
        logger.warning(
            "%s is of a run of %d ranks, this one has %d: it goes on from this checkpoint, but not exactly.",
            folder, state["ranks"], trainer.accelerator.num_processes,
        )  # fmt: skip
        return
    _load_generation(trainer, state)
    _load_logged(trainer, state)
    _load_learned(_reward_parts(trainer), state["rewards"], "reward functions")
    _load_learned(_own_callbacks(trainer), state["callbacks"], "callbacks")
    if _reference_moves(trainer) and (folder / REFERENCE).is_file():
        weights = torch.load(folder / REFERENCE, map_location="cpu", weights_only=True)
        with _whole_reference(trainer, modifier_rank=0) as reference:
            # Under ZeRO-3 the main process alone writes, and its weights go to all.
            if not _is_zero3(trainer) or trainer.accelerator.is_main_process:
                reference.load_state_dict(weights)


def _state(trainer: Any) -> dict[str, Any]:
    buffered = trainer._step % _generate_every(trainer) != 0
    return {
        "ranks": trainer.accelerator.num_processes,
        "rows": _rows(trainer),
        "step": trainer._step,
        "buffer": _plain(trainer._buffered_inputs) if buffered else None,
        "metrics": _plain(trainer._metrics["train"]),
        "tables": _plain(trainer._logs) if trainer.args.log_completions else {},
        "losses": {name: _plain(getattr(trainer, name)) for name in _LOSSES} if hasattr(trainer, "_tr_loss") else {},
        "rewards": [(name, part.state_dict()) for name, part in _reward_parts(trainer)],
        "callbacks": [(name, part.state_dict()) for name, part in _own_callbacks(trainer)],
    }


def _generate_every(trainer: Any) -> int:
    return trainer.args.steps_per_generation * trainer.num_iterations


def _rows(trainer: Any) -> list[int]:
    """What decides where a generation begins, and how many rows its parts have."""
    args = trainer.args
    return [args.per_device_train_batch_size, args.gradient_accumulation_steps, _generate_every(trainer)]


def _plain(value: Any) -> Any:
    """Tensors on the CPU, lists, dicts, numbers and texts: what `weights_only` reads."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple | deque) else value


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return {name: _on(device, item) for name, item in value.items()} if isinstance(value, dict) else value


def _load_generation(trainer: Any, state: Mapping[str, Any]) -> None:
    if state["rows"] != _rows(trainer):
        logger.warning(
            "The batch sizes [per_device_train_batch_size, gradient_accumulation_steps, micro-batches from one "
            "generation to the next] were %s in the checkpoint and are %s now: new completions are sampled.",
            state["rows"], _rows(trainer),
        )  # fmt: skip
        return
    trainer._step = state["step"]
    if state["buffer"] is not None:
        trainer._buffered_inputs = [_on(trainer.accelerator.device, batch) for batch in state["buffer"]]
        # A part of it is learned, so `keep_groups` has dealt its rows out before; not twice.
        trainer.regrouped_inputs = trainer._buffered_inputs


def _load_logged(trainer: Any, state: Mapping[str, Any]) -> None:
    for name, values in state["metrics"].items():
        trainer._metrics["train"][name] = values
    _refill(trainer._logs, state["tables"])
    for name, value in state["losses"].items():
        setattr(trainer, name, _on(trainer.args.device, value))


def _refill(columns: Any, saved: Mapping[str, Any]) -> None:
    for name, values in saved.items():
        if isinstance(values, dict):
            _refill(columns[name], values)
        else:
            columns[name].extend(values)


def _reward_parts(trainer: Any) -> Iterable[tuple[str, Any]]:
    """The reward functions that have a state, at any depth."""
    return [found for reward in trainer.reward_funcs for found in _stateful(reward)]


def _stateful(reward: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(reward, torch.nn.Module):
        return
    if hasattr(reward, "state_dict") and hasattr(reward, "load_state_dict"):
        yield getattr(reward, "__name__", type(reward).__name__), reward
    for inner in (getattr(reward, "__wrapped__", None), *getattr(reward, "parts", ())):
        if callable(inner):
            yield from _stateful(inner)


def _own_callbacks(trainer: Any) -> Iterable[tuple[str, Any]]:
    """The callbacks that have a state and do not give it to transformers."""
    callbacks = trainer.callback_handler.callbacks
    stateful = [one for one in callbacks if hasattr(one, "state_dict") and hasattr(one, "load_state_dict")]
    return [(type(one).__name__, one) for one in stateful if not isinstance(one, ExportableState)]


def _load_learned(parts: Iterable[tuple[str, Any]], saved: list[tuple[str, Any]], kind: str) -> None:
    loads: list[Callable[[Any], None]] = [part.load_state_dict for _, part in parts]
    names, theirs = [name for name, _ in parts], [name for name, _ in saved]
    if names != theirs:
        raise ValueError(
            f"The {kind} with a state are {', '.join(names) or 'none'}, but {', '.join(theirs) or 'none'} in the "
            "checkpoint: resume with the same ones, or start from the checkpoint's weights as a new run."
        )
    for load, (_, state) in zip(loads, saved, strict=True):
        load(state)


@contextmanager
def _whole_reference(trainer: Any, modifier_rank: int | None = None) -> Iterator[Any]:
    """The reference model, its weights gathered from all ranks under DeepSpeed ZeRO-3; every rank must call it."""
    reference = trainer.accelerator.unwrap_model(trainer.ref_model)
    if not _is_zero3(trainer):
        yield reference
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(reference.parameters()), modifier_rank=modifier_rank):
        yield reference


def _is_zero3(trainer: Any) -> bool:
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return plugin is not None and plugin.zero_stage == 3


def _reference_moves(trainer: Any) -> bool:
    return bool(trainer.args.sync_ref_model) and trainer.ref_model is not None

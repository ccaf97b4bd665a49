"""From base and delta to the fine-tuned model again: as a checkpoint folder, or into a model in memory."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn

from trl_grpo_ext.bitdelta.codecs import LOSSY
from trl_grpo_ext.bitdelta.delta_folder import copy_beside
from trl_grpo_ext.bitdelta.errors import BitDeltaError
from trl_grpo_ext.bitdelta.headers import DTYPES, NAMES
from trl_grpo_ext.bitdelta.in_place import apply_in_place
from trl_grpo_ext.bitdelta.lora_export import export_lora
from trl_grpo_ext.bitdelta.reading import Delta
from trl_grpo_ext.bitdelta.sources import Checkpoint, Source, open_source
from trl_grpo_ext.bitdelta.writing import (
    Planned,
    check_target,
    new_folder,
    shard_names,
    shards,
    tensor_bytes,
    write_safetensors,
)

SHARD_SIZE = 5_000_000_000
# Above this share of a delta's weights that vanish in the dtype asked for, the export says so.
VANISHED = 0.05
FORMATS = ("checkpoint", "lora")


def open_base(delta: Delta, base: Checkpoint | None) -> Source:
    """Return the delta's base, or the one given in its place, with names, dtypes and shapes checked.

    Raises:
        BitDeltaError: it can't be found.
        WrongBaseError: it is another model.
    """
    recorded = delta.table.base
    try:
        source = open_source(
            recorded["id"] if base is None else base, recorded.get("revision") if base is None else None
        )
    except BitDeltaError as error:
        if base is not None:
            raise
        raise BitDeltaError(f"the recorded base can't be had: {error} Give its place as base.") from error
    delta.check_base(source)
    return source


def tensors(delta: Delta, source: Source, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield the fine-tuned tensors one by one.

    Raises:
        WrongBaseError, DamagedDeltaError: with the tensor's name.
    """
    for name in delta.tensors:
        yield name, delta.tensor(name, source, dtype)


def export(
    delta: str | os.PathLike[str],
    out: str | os.PathLike[str],
    base: Checkpoint | None = None,
    *,
    format: str = "checkpoint",
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    shard_size: int = SHARD_SIZE,
) -> Path:
    """Write the fine-tuned model as a plain folder, which anything loads without this package.

    Args:
        delta: the delta's folder.
        out: the new folder, whole or not at all.
        base: where the base is, if not where it was.
        format: "checkpoint", or "lora": a PEFT adapter, for deltas whose every changed tensor is of low rank.
        dtype: dtype of the weights; by default the fine-tuned ones'. A warning says how many weights a narrower one
            leaves unchanged.
        overwrite: replace what stands in `out`.
        shard_size: most bytes of one file.

    Returns:
        The folder.

    Raises:
        BitDeltaError: the delta is damaged, the base another one, `out` taken, or the disk full.
    """
    if format not in FORMATS:
        raise ValueError(f"export: format must be one of {', '.join(FORMATS)}, not {format!r}.")
    opened, target = Delta(delta), Path(out)
    check_target(target, overwrite)
    if format == "lora":
        if base is not None or dtype is not None:
            raise ValueError("export: format='lora' reads no base and keeps bfloat16; leave base and dtype out.")
        with new_folder(target, overwrite) as work:
            export_lora(opened, work)
        return target
    source = open_base(opened, base)
    with new_folder(target, overwrite) as work:
        _write_checkpoint(opened, source, work, dtype, shard_size)
        config = dict(opened.table.model_config)
        if dtype is not None:
            config |= {name: str(dtype).removeprefix("torch.") for name in ("dtype", "torch_dtype") if name in config}
        (work / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        copy_beside(opened.folder, work)
    return target


def _plan(delta: Delta, dtype: torch.dtype | None) -> list[list[Planned]]:
    plan = []
    for name, entry in delta.tensors.items():
        wide = dtype is not None and DTYPES[entry.dtype].is_floating_point
        plan.append([Planned(name, NAMES[dtype] if wide and dtype else entry.dtype, tuple(entry.shape))])
    return plan


def _write_checkpoint(delta: Delta, source: Source, work: Path, dtype: torch.dtype | None, shard_size: int) -> None:
    found = shards(_plan(delta, dtype), shard_size)
    files = shard_names("model", len(found))
    counter = _Vanished(delta, source)

    def data(item: Planned, file: IO[bytes]) -> None:
        tensor = delta.tensor(item.name, source, dtype)
        counter.add(item.name, tensor)
        file.write(tensor_bytes(tensor))

    for file, plan in zip(files, found, strict=True):
        write_safetensors(work / file, plan, data)
    if len(files) > 1:
        weight_map = {item.name: file for file, plan in zip(files, found, strict=True) for item in plan}
        total = sum(item.nbytes for plan in found for item in plan)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (work / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    counter.warn()


class _Vanished:
    """Counts the weights of lossy codes whose delta vanished in rounding to a narrower dtype than was trained."""

    def __init__(self, delta: Delta, source: Source) -> None:
        self._delta, self._source = delta, source
        self._lost = self._all = 0

    def add(self, name: str, tensor: Tensor) -> None:
        entry = self._delta.tensors[name]
        own = DTYPES[entry.dtype]
        if entry.codec not in LOSSY or tensor.element_size() >= own.itemsize:
            return
        self._lost += int((tensor == self._source.tensor(name).to(tensor.dtype)).sum())
        self._all += tensor.numel()

    def warn(self) -> None:
        if self._lost > VANISHED * self._all:
            warnings.warn(
                f"{self._lost / self._all:.0%} of the changed weights are the base's again in this dtype: their deltas "
                "are below its precision. Export in the dtype that was trained.",
                stacklevel=4,
            )


def apply(
    base: Checkpoint,
    delta: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
) -> nn.Module | Path:
    """Put a delta on a base.

    Args:
        base: a checkpoint folder or hub id, whose result is written to `out`; or a model in memory, whose weights are
            replaced in place.
        delta: the delta's folder.
        out: folder of the new checkpoint; only for a base on disk.
        overwrite: replace what stands in `out`.

    Returns:
        The model, or the folder.

    Raises:
        WrongBaseError: another base; nothing was changed.
        BitDeltaError: the delta is damaged, or a model in memory can't hold its tensors.
        ValueError: `out` missing, or given beside a model.
    """
    if isinstance(base, nn.Module):
        if out is not None:
            raise ValueError("apply: a model in memory is changed in place; leave out away, or name a checkpoint.")
        return apply_in_place(base, Delta(delta))
    if out is None:
        raise ValueError("apply: a base on disk is not changed; name the folder of the new checkpoint as out.")
    return export(delta, out, base, overwrite=overwrite)


def verify(delta: str | os.PathLike[str], base: Checkpoint | None = None) -> int:
    """Check every part of a delta and every tensor of its base, and make every tensor once.

    Returns:
        How many tensors were checked.

    Raises:
        BitDeltaError: what is wrong, with the tensor's name.
    """
    opened = Delta(delta)
    source = open_base(opened, base)
    for name, tensor in tensors(opened, source):
        if tensor.is_floating_point() and tensor.element_size() > 1 and not bool(torch.isfinite(tensor).all()):
            raise BitDeltaError(f"{name}: the fine-tuned tensor is not finite.")
    return len(opened.tensors)

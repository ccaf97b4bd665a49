"""`compress`: a fine-tuned checkpoint as a delta of its base, tensor by tensor; never two models in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from trl_grpo_ext.bitdelta.calibration import prompt_inputs
from trl_grpo_ext.bitdelta.config import BitDeltaConfig
from trl_grpo_ext.bitdelta.delta_folder import write_parts, write_report, write_rest
from trl_grpo_ext.bitdelta.errors import BitDeltaError, TensorError
from trl_grpo_ext.bitdelta.fingerprint import checksum, digest, fingerprint
from trl_grpo_ext.bitdelta.gate import Gate
from trl_grpo_ext.bitdelta.headers import NAMES
from trl_grpo_ext.bitdelta.ladder import Choice, Ladder
from trl_grpo_ext.bitdelta.report import DeltaReport
from trl_grpo_ext.bitdelta.sources import Checkpoint, Source, open_source
from trl_grpo_ext.bitdelta.table import Entry, Table
from trl_grpo_ext.bitdelta.writing import Spool, check_target, new_folder


def compress(
    base: Checkpoint,
    finetuned: Checkpoint,
    out: str | os.PathLike[str],
    config: BitDeltaConfig | None = None,
    *,
    inputs: Mapping[str, Tensor] | None = None,
    prompts: Sequence[str] | None = None,
    gate: Gate | None = None,
    overwrite: bool = False,
    base_revision: str | None = None,
    quality: Mapping[str, Any] | None = None,
) -> DeltaReport:
    """Write a fine-tuned checkpoint as a delta.

    Args:
        base: what the run started from: a checkpoint folder, a hub id, or a model in memory. For a GRPO run, the
            checkpoint that GRPO started from, not the pretrained one before it.
        finetuned: what it ended with, likewise.
        out: folder of the delta, new or empty. It appears whole or not at all.
        config: how to compress.
        inputs: inputs of linear layers by the name of their weight, [tokens, columns]; see `collect_inputs`. Layers
            without any keep mean scales.
        prompts: texts to collect the inputs from, with one forward pass of the fine-tuned model, which is loaded for it.
        gate: a test of behaviour that the compressed model must pass; see `Gate`.
        overwrite: replace what stands in `out`.
        base_revision: commit of the base on the hub.
        quality: measurements to keep in the delta's table.

    Returns:
        What was chosen for every tensor, and why.

    Raises:
        BitDeltaError: the checkpoints can't be read or compared, `out` is taken, or the disk is full.
        TensorError: NaN or infinity in a tensor.
        ValueError: settings or inputs that do not fit.
    """
    settings, target = config or BitDeltaConfig(), Path(out)
    check_target(target, overwrite)
    if gate is not None:
        options = {"inputs": inputs, "prompts": prompts, "base_revision": base_revision, "quality": quality}
        return _compress_gated(base, finetuned, target, settings, gate, overwrite, options)
    if prompts is not None and settings.fit != "mean":
        inputs = {**prompt_inputs(finetuned, prompts), **(inputs or {})}
    first, second = open_source(base, base_revision), open_source(finetuned)
    _check_pair(first, second)
    if settings.fit == "activation" and not inputs:
        raise ValueError("BitDeltaConfig: fit='activation' needs inputs; give prompts or inputs, or fit='mean'.")
    with new_folder(target, overwrite) as work:
        spool = Spool(work / "parts.tmp")
        try:
            table = _encode_all(first, second, spool, Ladder(settings), inputs or {})
            table.quality = dict(quality or {})
            write_parts(work, table, spool, settings.shard_size)
        finally:
            spool.close()
        report = DeltaReport(table)
        write_rest(work, report, second.folder)
    return report


def _compress_gated(
    base: Checkpoint,
    finetuned: Checkpoint,
    target: Path,
    settings: BitDeltaConfig,
    gate: Gate,
    overwrite: bool,
    options: dict[str, Any],
) -> DeltaReport:
    """Compress, and compress again with more, until the gate lets it pass; only then does the folder appear."""
    wanted = gate.scores(finetuned, base)
    with new_folder(target, overwrite) as work:
        for attempt in gate.attempts(settings):
            inner = work / "delta"
            report = compress(base, finetuned, inner, attempt, overwrite=True, **options)
            quality = gate.quality(wanted, gate.scores(inner, base))
            if quality["passed"]:
                break
        if not quality["passed"]:
            raise BitDeltaError(f"{target}: the behaviour gate refuses it: {gate.message(quality)}. Nothing was kept.")
        report.table.quality |= {"gate": quality}
        write_report(inner, report)
        for file in list(inner.iterdir()):
            file.rename(work / file.name)
        inner.rmdir()
    return report


def _check_pair(base: Source, finetuned: Source) -> None:
    if not set(base.names()) & set(finetuned.names()):
        raise TensorError(
            f"{base.name} and {finetuned.name} have no tensor name in common "
            f"({base.names()[0]!r}, {finetuned.names()[0]!r}): they are not of one model. Save both the same way."
        )


def _encode_all(base: Source, finetuned: Source, spool: Spool, ladder: Ladder, inputs: Mapping[str, Tensor]) -> Table:
    known = set(base.names())
    entries: dict[str, Entry] = {}
    # Hashing leaves the interpreter's lock, so it runs beside the coding.
    with ThreadPoolExecutor(1) as pool:
        for name in finetuned.names():
            before = base.tensor(name) if name in known else None
            hashed = pool.submit(checksum, before) if before is not None else None
            after = finetuned.tensor(name)
            try:
                choice = ladder.choose(name, before, after, inputs.get(name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            entry = _entry(choice, after)
            if before is not None and hashed is not None:
                entry.base = _base_entry(before, hashed.result())
            _spool(name, choice, entry, spool)
            entries[name] = entry
    removed = sorted(known - set(entries))
    plain = {name: entry.base for name, entry in entries.items() if entry.base}
    about = {"id": base.name, "revision": base.revision, "fingerprint": fingerprint(plain)}
    return Table(about, finetuned.name, ladder.config.to_dict(), finetuned.config(), entries, removed)


def _entry(choice: Choice, tensor: Tensor) -> Entry:
    return Entry(
        codec=choice.item.codec,
        dtype=NAMES[tensor.dtype],
        shape=list(tensor.shape),
        params=choice.item.params,
        density=choice.density,
        kappa=choice.kappa,
        explained=choice.explained,
        fit=choice.fit,
        reason=choice.reason,
        nbytes=choice.item.nbytes,
    )


def _base_entry(tensor: Tensor, crc32: int) -> dict[str, Any]:
    return {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "crc32": crc32}


def _spool(name: str, choice: Choice, entry: Entry, spool: Spool) -> None:
    for part, tensor in choice.item.parts.items():
        spool.add(f"{name}.{part}", tensor)
        entry.parts[part] = digest(tensor)

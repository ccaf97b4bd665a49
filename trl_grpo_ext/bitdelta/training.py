"""Deltas of the model that a trainer has: what scales are fitted to, and `trainer.compress_deltas`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trl_grpo_ext.bitdelta.calibration import BATCH as ROWS
from trl_grpo_ext.bitdelta.calibration import MOST_PROMPT_TOKENS, collect_inputs, prompt_batches
from trl_grpo_ext.bitdelta.compress import compress
from trl_grpo_ext.bitdelta.config import BitDeltaConfig
from trl_grpo_ext.bitdelta.errors import BitDeltaError
from trl_grpo_ext.bitdelta.report import DeltaReport
from trl_grpo_ext.bitdelta.sources import Checkpoint, open_source

FOLDER = "bitdelta"
ADAPTER = (
    "this run trains an adapter, which is exact and smaller than any delta of the model it adapts. The adapter is kept; "
    "no delta is made."
)
# The saved model, until its delta is made.
SOURCE = "bitdelta-source"
PROMPTS = 32
MEDIA = ("images", "videos", "audios", "image", "pixel_values")


def compress_trained(
    trainer: Any,
    config: BitDeltaConfig | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    base: Checkpoint | None = None,
    prompts: Sequence[str] | None = None,
) -> DeltaReport | None:
    """Save the model that a trainer has now, and write it as a delta; every rank must call it.

    Args:
        trainer: a transformers `Trainer`.
        config: how to compress.
        out: folder of the delta; by default `output_dir/bitdelta`. What stands there is replaced.
        base: what the run started from; by default the model's own `name_or_path`.
        prompts: texts that scales are fitted to; by default rows of the training data.

    Returns:
        What was chosen for every tensor; None on ranks other than 0.

    Raises:
        BitDeltaError: the run trains an adapter, the base can't be read, or the delta can't be written.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "peft_config"):
        raise BitDeltaError(f"compress_deltas: {ADAPTER}")
    settings, start = config or BitDeltaConfig(), base if base is not None else recorded_base(model)
    open_source(start)
    output = Path(trainer.args.output_dir)
    target = output / FOLDER if out is None else Path(out)
    saved = output / SOURCE
    trainer.save_model(str(saved))
    if not trainer.is_world_process_zero():
        return None
    try:
        inputs = training_inputs(trainer, settings, prompts)
        return compress(start, saved, target, settings, inputs=inputs, overwrite=True)
    finally:
        shutil.rmtree(saved, ignore_errors=True)


def recorded_base(model: Any) -> str:
    """Return the checkpoint that a model was loaded from.

    Raises:
        BitDeltaError: there was none.
    """
    found = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not found:
        raise BitDeltaError("the model was not loaded from a checkpoint, so its base is not known; give base.")
    return str(found)


def training_inputs(trainer: Any, config: BitDeltaConfig, prompts: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Return what the linear layers see on prompts, or on rows of the training data; none where scales are not fitted.

    Sharded models (ZeRO-3, FSDP) give none: a forward pass on one rank would wait for the others.
    """
    if config.fit == "mean" or config.codec == "lossless":
        return {}
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return {}
    batches = prompt_batches(trainer.processing_class, prompts) if prompts is not None else training_batches(trainer)
    return collect_inputs(trainer.accelerator.unwrap_model(trainer.model), batches) if batches else {}


def training_batches(trainer: Any, count: int = PROMPTS) -> list[dict[str, Tensor]]:
    """Return rows of a trainer's data as padded batches, evenly spaced; none where they are not known as text or ids.

    Prompts of a column `prompt` as they are sampled from, token ids of a column `input_ids` (supervised stages).
    """
    rows = _rows(getattr(trainer, "train_dataset", None), count)
    if not rows or any(rows[0].get(name) for name in MEDIA):
        return []
    if "input_ids" in rows[0]:
        return _padded([list(row["input_ids"]) for row in rows])
    if "prompt" not in rows[0]:
        return []
    if hasattr(trainer, "tokenize_prompts"):
        return _padded(trainer.tokenize_prompts(rows))
    tokenizer, texts = trainer.processing_class, [row["prompt"] for row in rows]
    if isinstance(texts[0], list):
        texts = [tokenizer.apply_chat_template(text, tokenize=False, add_generation_prompt=True) for text in texts]
    texts = [text for text in texts if isinstance(text, str) and text]
    return prompt_batches(tokenizer, texts) if texts else []


def _rows(data: Any, count: int) -> list[dict[str, Any]]:
    # A streamed dataset can't be asked for a row without moving what training reads next.
    if data is None or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        return []
    step = max(1, len(data) // count)
    rows = [data[place] for place in range(0, len(data), step)][:count]
    return rows if all(isinstance(row, dict) for row in rows) else []


def _padded(rows: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
    """Return rows of token ids as batches; the padding's id is never looked at."""
    kept = [torch.tensor(row[:MOST_PROMPT_TOKENS]) for row in rows if len(row)]
    batches = []
    for start in range(0, len(kept), ROWS):
        group = kept[start : start + ROWS]
        masks = [torch.ones_like(row) for row in group]
        pad = torch.nn.utils.rnn.pad_sequence
        batches.append({"input_ids": pad(group, True), "attention_mask": pad(masks, True)})
    return batches

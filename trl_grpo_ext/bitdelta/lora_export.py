"""A delta of low rank as a PEFT LoRA adapter, which vLLM and PEFT serve natively, many to one base."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from trl_grpo_ext.bitdelta.errors import BitDeltaError
from trl_grpo_ext.bitdelta.reading import Delta
from trl_grpo_ext.bitdelta.table import Entry


def _check(name: str, entry: Entry) -> None:
    if entry.codec == "none" or (entry.codec == "low_rank" and len(entry.shape) == 2 and name.endswith(".weight")):
        return
    raise BitDeltaError(
        f"{name}: codec {entry.codec} is not of low rank, so this delta is no LoRA adapter. Export a checkpoint instead."
    )


def export_lora(delta: Delta, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors: W + B A with alpha = r, so that the scaling is 1.

    Raises:
        BitDeltaError: a changed tensor is not of low rank, none changed, or PEFT is not installed.
    """
    for name, entry in delta.tensors.items():
        _check(name, entry)
    ranks = {name: entry.params["rank"] for name, entry in delta.tensors.items() if entry.codec == "low_rank"}
    if not ranks:
        raise BitDeltaError(f"{delta.folder}: no tensor changed, so there is nothing to adapt.")
    weights: dict[str, Tensor] = {}
    for name in ranks:
        module, parts = name.removesuffix(".weight"), delta.encoded(name).parts
        weights[f"base_model.model.{module}.lora_A.weight"] = parts["b"].contiguous()
        weights[f"base_model.model.{module}.lora_B.weight"] = parts["a"].contiguous()
    _write_config(delta, folder, {name.removesuffix(".weight"): rank for name, rank in ranks.items()})
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})


def _write_config(delta: Delta, folder: Path, ranks: dict[str, int]) -> None:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise BitDeltaError("format='lora' needs PEFT: pip install peft.") from error
    largest = max(ranks.values())
    LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=delta.table.base["id"],
        inference_mode=True,
        r=largest,
        lora_alpha=largest,
        lora_dropout=0.0,
        target_modules=sorted(ranks),
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
    ).save_pretrained(folder)

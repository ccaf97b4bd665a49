r"""Distillation of scales on logits (BitDelta, arXiv 2402.10193, section 3.1), on their logarithms.

    min_t || Z_fine(x) - Z(x; base + sum_k scale_k exp(t_k) sign_k) ||^2

with one t per stored scale, from 0. A rate for logarithms is one for every size of delta; the paper's absolute rate of
1e-4 would overrun those of RL, which are smaller than its first step. Everything else stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trl_grpo_ext.bitdelta.codecs import Encoded, sign_code_of
from trl_grpo_ext.bitdelta.config import BitDeltaConfig
from trl_grpo_ext.bitdelta.delta_folder import write_parts, write_rest
from trl_grpo_ext.bitdelta.errors import BitDeltaError
from trl_grpo_ext.bitdelta.fingerprint import digest
from trl_grpo_ext.bitdelta.materialise import open_base
from trl_grpo_ext.bitdelta.packing import unpack_signs
from trl_grpo_ext.bitdelta.reading import Delta
from trl_grpo_ext.bitdelta.report import DeltaReport
from trl_grpo_ext.bitdelta.signs import matrix
from trl_grpo_ext.bitdelta.writing import Spool, new_folder

STEPS = 40
RATE = 0.03
SHARD_SIZE = BitDeltaConfig().shard_size


class _Scales(nn.Module):
    """The stored scales of one tensor times exp(t), on the device of its model."""

    def __init__(self, item: Encoded, base: Tensor, device: torch.device) -> None:
        super().__init__()
        columns = base.shape[-1]
        code = sign_code_of(item, columns)
        self.base, self.group = base.float().to(device), code.group
        self.signs = torch.stack([unpack_signs(mask, columns) for mask in code.signs]).to(device)
        self.start = code.scales.float().to(device)
        rest = item.parts["a"].float() @ item.parts["b"].float() if "a" in item.parts else None
        self.rest = None if rest is None else rest.to(device)
        self.logarithm = nn.Parameter(torch.zeros_like(self.start))

    def scales(self) -> Tensor:
        return self.start * self.logarithm.exp()

    def forward(self) -> Tensor:
        """Return base + delta in the base's shape, float32."""
        scales, (masks, rows, columns) = self.scales(), self.signs.shape
        wide = scales.reshape(masks, 1 if scales.ndim == 1 else rows, -1)
        if wide.shape[-1] > 1:
            wide = wide.repeat_interleave(self.group, -1)[..., :columns]
        delta = (wide * self.signs).sum(0)
        delta = delta if self.rest is None else delta + self.rest
        return self.base + delta.view(self.base.shape)


def distill(
    delta: str | os.PathLike[str],
    finetuned: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    out: str | os.PathLike[str],
    *,
    base: Any = None,
    steps: int = STEPS,
    rate: float = RATE,
    overwrite: bool = False,
) -> DeltaReport:
    """Write a delta again, with the scales of its sign codes trained on the fine-tuned model's logits.

    Unlike everything else here this has the fine-tuned model and the changed weights in memory, in float32, with
    gradients of the activations.

    Args:
        delta: the delta's folder.
        finetuned: the model that it was made of.
        batches: of `input_ids` and, where there is padding, `attention_mask`, whose zeros are left out; `prompt_batches`
            of a tokenizer makes them.
        out: folder of the new delta.
        base: where the base is, if not where it was.
        steps: optimizer steps (Adam), one batch each, the batches in turn.
        rate: learning rate of the logarithms.
        overwrite: replace what stands in `out`.

    Returns:
        The report; the fit of the trained scales is "distill".

    Raises:
        ValueError: no batches, or a number out of range.
        BitDeltaError: no sign code whose tensor the model has, another shape there, or a damaged delta.
    """
    if not batches or steps < 1 or not rate > 0:
        raise ValueError(
            f"distill: batches, steps and rate must be at least one and above 0, not {steps} and {rate!r}."
        )
    opened = Delta(delta)
    source = open_base(opened, base)
    held = dict(finetuned.named_parameters())
    names = [name for name, entry in opened.tensors.items() if "scale" in entry.parts and name in held]
    if not names:
        raise BitDeltaError(
            f"{opened.folder}: it has no sign codes that {type(finetuned).__name__} has parameters for."
        )
    for name in names:
        if list(held[name].shape) != opened.tensors[name].shape:
            raise BitDeltaError(
                f"{name}: the model has the shape {list(held[name].shape)}, the delta {opened.tensors[name].shape}: it is not "
                "the model that the delta was made of."
            )
    scales = {name: _Scales(opened.encoded(name), _base(opened, source, name), held[name].device) for name in names}
    _train(finetuned, scales, batches, steps, rate)
    return _rewritten(
        opened, {name: item.scales().detach().cpu() for name, item in scales.items()}, Path(out), overwrite
    )


def _base(opened: Delta, source: Any, name: str) -> Tensor:
    tensor = opened.base_tensor(name, source)
    assert tensor is not None
    return tensor if tensor.ndim >= 2 else matrix(tensor)


def _train(
    model: nn.Module, scales: Mapping[str, _Scales], batches: Sequence[Mapping[str, Tensor]], steps: int, rate: float
) -> None:
    trained = [item.logarithm for item in scales.values()]
    optimizer = torch.optim.Adam(trained, rate)
    dtypes = {name: tensor.dtype for name, tensor in model.named_parameters()}
    device, training = next(model.parameters()).device, model.training
    model.eval()
    for step in range(steps):
        batch = {name: value.to(device) for name, value in batches[step % len(batches)].items()}
        kept = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        with torch.no_grad():
            wanted = model(**batch).logits[kept].float()
        weights = {name: item().to(dtypes[name]) for name, item in scales.items()}
        found = functional_call(model, weights, (), batch).logits[kept].float()
        # The model's own parameters keep whatever gradients they have.
        gradients = torch.autograd.grad((found - wanted).square().mean(), trained)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    model.train(training)


def _rewritten(opened: Delta, scales: Mapping[str, Tensor], out: Path, overwrite: bool) -> DeltaReport:
    table = opened.table
    with new_folder(out, overwrite) as work:
        spool = Spool(work / "parts.tmp")
        try:
            for name, entry in table.tensors.items():
                parts = dict(opened.encoded(name).parts)
                if name in scales:
                    parts["scale"] = scales[name].to(parts["scale"].dtype).contiguous()
                    entry.fit, entry.parts["scale"] = "distill", digest(parts["scale"])
                for part, tensor in parts.items():
                    spool.add(f"{name}.{part}", tensor)
            write_parts(work, table, spool, SHARD_SIZE)
        finally:
            spool.close()
        report = DeltaReport(table)
        write_rest(work, report, opened.folder)
    return report

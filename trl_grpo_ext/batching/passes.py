"""Which form a log-probability pass of the trainer takes: shared prompts, chunks, or TRL's own."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch

from trl_grpo_ext._compat import has_chunked_head, logps_result
from trl_grpo_ext.batching import support
from trl_grpo_ext.batching.attention import register
from trl_grpo_ext.batching.head import scoring_head
from trl_grpo_ext.batching.shared_prompt import owners, shared_row

Found = tuple[torch.Tensor, torch.Tensor | None]

# Nats. The largest difference of a log-probability in float32, and the mean difference in 16 bits.
TOLERANCE = 1e-3
TOLERANCE_16_BITS = 5e-2
_KNOWN = frozenset({"self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"})


class LogProbPasses:
    """Computes log-probabilities and entropies in the cheapest form that is right for a model.

    The first micro-batch that a model sees is computed in each form and in TRL's; a form that differs by more than
    `TOLERANCE` is not used for that model, and a warning says so.

    Args:
        accelerator: the trainer's.
        temperature: divides the logits.
        share: encode each prompt of a micro-batch once.
        chunk: never hold the logits of whole sequences; TRL >= 1.15 does so by itself.
        skip_entropy: compute no entropy; zeros are returned where TRL asks for it.
    """

    def __init__(self, accelerator: Any, temperature: float, share: bool, chunk: bool, skip_entropy: bool) -> None:
        self.accelerator, self.temperature = accelerator, temperature
        self.skip_entropy = skip_entropy
        self._asked = {"shared_prompt": share, "chunked_logps": chunk and not has_chunked_head()}
        self._usable: dict[int, set[str]] = {}

    def __call__(self, dense: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do what TRL's `_get_per_token_logps_and_entropies` does.

        Args:
            dense: that method of TRL.
            *args: its arguments.
            **kwargs: the same.
        """
        call = signature(dense).bind(*args, **kwargs).arguments
        wanted = call.get("compute_entropy", False)
        call["compute_entropy"] = wanted and not self.skip_entropy
        if any(value is not None and value is not False for name, value in call.items() if name not in _KNOWN):
            result = dense(**call)
        else:
            result = self._computed(dense, call)
        if wanted and self.skip_entropy:
            result = (result[0], torch.zeros_like(result[0]), *result[2:])
        return result

    def _computed(self, dense: Callable[..., Any], call: dict[str, Any]) -> Any:
        model, ids, mask, keep = (call[name] for name in ("model", "input_ids", "attention_mask", "logits_to_keep"))
        rows = call.get("batch_size") or len(ids)
        usable = self._forms(dense, call, rows) if any(self._asked.values()) else set()
        if not usable:
            return dense(**call)
        parts = []
        for part, part_mask in zip(ids.split(rows), mask.split(rows), strict=True):
            form = _form(usable, part, part_mask, keep)
            if form is None:
                one = dense(**call | {"input_ids": part, "attention_mask": part_mask, "batch_size": None})
                parts.append((one[0], one[1]))
            else:
                parts.append(self._one(form, model, part, part_mask, keep, call["compute_entropy"]))
        entropies = torch.cat([part[1] for part in parts]) if call["compute_entropy"] else None
        return logps_result(torch.cat([part[0] for part in parts]), entropies)

    def _one(self, form: str, model: Any, ids: torch.Tensor, mask: torch.Tensor, keep: int, entropies: bool) -> Found:
        labels = ids[:, -keep:]
        bare, last, shape = support.bare_model(self.accelerator.unwrap_model(model)), 1, labels.shape
        if form == "shared_prompt":
            row = shared_row(ids[:, :-keep], mask[:, :-keep], labels)
            # Four dimensions are taken for a finished mask; without them transformers would make one of L x L.
            nothing = torch.ones(1, 1, 1, row.input_ids.shape[1], dtype=torch.bool, device=ids.device)
            inputs = {"input_ids": row.input_ids, "position_ids": row.position_ids, "attention_mask": nothing}
            inputs["shared_layout"] = row.layout
            labels, last = labels.reshape(1, -1), 0
        else:
            inputs = {"input_ids": ids, "attention_mask": mask}
        if support.takes_logits_to_keep(bare):
            inputs["logits_to_keep"] = labels.shape[1] + last
        scoring = scoring_head(bare.get_output_embeddings(), labels, self.temperature, entropies, last)
        with scoring, self.accelerator.autocast():
            found = model(**inputs, use_cache=False).logits
        padding = mask[:, -keep:] == 0
        values = [value.reshape(shape).masked_fill(padding, 0.0) for value in found.unbind(-1)]
        return values[0], values[1] if entropies else None

    def _forms(self, dense: Callable[..., Any], call: dict[str, Any], rows: int) -> set[str]:
        """The forms that are right for this model, found out at its first call."""
        model = self.accelerator.unwrap_model(call["model"])
        if id(model) not in self._usable:
            asked = [form for form, wanted in self._asked.items() if wanted]
            self._usable[id(model)] = {form for form in asked if self._is_right(form, model, dense, call, rows)}
        return self._usable[id(model)]

    def _is_right(self, form: str, model: Any, dense: Callable[..., Any], call: dict[str, Any], rows: int) -> bool:
        reason = support.no_sharing_because(model) if form == "shared_prompt" else support.no_chunks_because(model)
        if reason is None:
            if form == "shared_prompt":
                support.bare_model(model).set_attn_implementation(register())
            first = {name: call[name][:rows] for name in ("input_ids", "attention_mask")}
            reason = self._difference(form, model, dense, call | first | {"compute_entropy": False})
        if reason is not None:
            warnings.warn(
                f"{form}=True is not used for {type(support.bare_model(model)).__name__}: {reason}. Its "
                "log-probabilities are computed without it, which is slower and takes more memory.",
                stacklevel=2,
            )
        return reason is None

    def _difference(self, form: str, model: Any, dense: Callable[..., Any], call: dict[str, Any]) -> str | None:
        ids, mask, keep = call["input_ids"], call["attention_mask"], call["logits_to_keep"]
        with _evaluating(model), torch.no_grad():
            theirs = dense(**call)[0]
            ours = self._one(form, call["model"], ids, mask, keep, False)[0]
        differences = (theirs.float() - ours.float()).abs()[mask[:, -keep:].bool()]
        short = self.accelerator.mixed_precision != "no" or next(model.parameters()).dtype.itemsize < 4
        limit = TOLERANCE_16_BITS if short else TOLERANCE
        found = (
            differences.new_zeros(1) if not len(differences) else (differences.mean() if short else differences.max())
        )
        worst = self.accelerator.gather(found.reshape(1)).max().item()
        if worst <= limit:
            return None
        return (
            f"on the first micro-batch its log-probabilities differ from TRL's by {worst:.3g} nats (limit {limit:g})"
        )


def _form(usable: set[str], ids: torch.Tensor, mask: torch.Tensor, keep: int) -> str | None:
    if "shared_prompt" in usable and len(owners(ids[:, :-keep], mask[:, :-keep])[0]) < len(ids):
        return "shared_prompt"
    return "chunked_logps" if "chunked_logps" in usable else None


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout, and with the mode of every module as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

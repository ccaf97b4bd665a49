"""Which form a log-probability pass of the trainer takes: shared prompts, chunks, or TRL's own."""

import warnings
from collections.abc import Callable, Collection
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch

from trl_grpo_ext._compat import has_chunked_head, logps_result
from trl_grpo_ext.batching import attention, support
from trl_grpo_ext.batching.head import scoring_head
from trl_grpo_ext.batching.shared_prompt import owners, shared_row
from trl_grpo_ext.batching.verification import difference, evaluating

Found = tuple[torch.Tensor, torch.Tensor | None]

_KNOWN = frozenset({"self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"})


class LogProbPasses:
    """Computes log-probabilities and entropies in the cheapest form that is right for a model.

    The first micro-batch that a model sees is computed in each form and in TRL's; a form that differs by more than
    `verification.TOLERANCE` is not used for that model, and a warning says so.

    Args:
        accelerator: the trainer's.
        temperature: divides the logits.
        share: encode each prompt of a micro-batch once.
        chunk: never hold the logits of whole sequences; TRL >= 1.15 does so by itself.
        skip_entropy: compute no entropy; zeros are returned where TRL asks for it.
        asked: options that the user asked for: a warning says why, where a model can't have them.
    """

    def __init__(
        self,
        accelerator: Any,
        temperature: float,
        share: bool,
        chunk: bool,
        skip_entropy: bool,
        asked: Collection[str] = ("shared_prompt", "chunked_logps"),
    ) -> None:
        self.accelerator, self.temperature = accelerator, temperature
        self.skip_entropy, self._asked = skip_entropy, asked
        wanted = {"shared_prompt": share, "chunked_logps": chunk and not has_chunked_head()}
        self._wanted = [form for form, is_wanted in wanted.items() if is_wanted]
        self._usable: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()

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
        usable = self._forms(dense, call, rows) if self._wanted else set()
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
            attention.share(bare)
            row = shared_row(ids[:, :-keep], mask[:, :-keep], labels)
            # Four dimensions are taken for a finished mask; without them transformers would make one of L x L.
            nothing = torch.ones(1, 1, 1, row.input_ids.shape[1], dtype=torch.bool, device=ids.device)
            inputs = {"input_ids": row.input_ids, "position_ids": row.position_ids, "attention_mask": nothing}
            inputs["shared_layout"] = row.layout
            labels, last = labels.reshape(1, -1), 0
        else:
            inputs = {"input_ids": ids, "attention_mask": mask}
        if support.takes(bare, "logits_to_keep"):
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
        if model not in self._usable:
            found = {form for form in self._wanted if self._is_right(form, model, dense, call, rows)}
            self._usable[model] = found
        return self._usable[model]

    def _is_right(self, form: str, model: Any, dense: Callable[..., Any], call: dict[str, Any], rows: int) -> bool:
        reason = support.no_sharing_because(model) if form == "shared_prompt" else support.no_chunks_because(model)
        loudly = form in self._asked
        if reason is None:
            first = {name: call[name][:rows] for name in ("input_ids", "attention_mask")}
            reason, loudly = self._difference(form, model, dense, call | first | {"compute_entropy": False}), True
        if reason is not None and form == "shared_prompt":
            attention.put_back(support.bare_model(model))
        if reason is not None and loudly:
            warnings.warn(
                f"{form} is not used for {type(support.bare_model(model)).__name__}: {reason}. Its "
                "log-probabilities are computed without it, which is slower and takes more memory.",
                stacklevel=2,
            )
        return reason is None

    def _difference(self, form: str, model: Any, dense: Callable[..., Any], call: dict[str, Any]) -> str | None:
        ids, mask, keep = call["input_ids"], call["attention_mask"], call["logits_to_keep"]
        with evaluating(model), torch.no_grad():
            theirs = dense(**call)[0]
            ours = self._one(form, call["model"], ids, mask, keep, False)[0]
        real = mask[:, -keep:].bool()
        return difference(self.accelerator, model, ours[real], theirs[real], "on the first micro-batch")

    def put_back(self) -> None:
        """Give every model the attention back that it came with; the next shared pass takes it anew."""
        for model in self._usable:
            attention.put_back(support.bare_model(model))


def _form(usable: set[str], ids: torch.Tensor, mask: torch.Tensor, keep: int) -> str | None:
    if "shared_prompt" in usable and len(owners(ids[:, :-keep], mask[:, :-keep])[0]) < len(ids):
        return "shared_prompt"
    return "chunked_logps" if "chunked_logps" in usable else None

"""Which parts of this folder a run uses: those that were asked for, and by default those that are exact."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class BatchingPlan:
    """The options of the same names, decided; `asked` are those that the user set to True."""

    shared_prompt: bool
    shared_prefill: bool
    chunked_logps: bool
    keep_groups: bool
    trim_padding: bool
    asked: frozenset[str]


@dataclass(frozen=True)
class Circumstances:
    """What defaults depend on.

    Args:
        one_window: a generation is one optimizer step, trained on once, and the loss is the same in whichever order its
            rows come.
        own_head: nothing is set that needs the logits, or a gradient of the entropy.
        own_loss_fn: the loss is a user's function, which may depend on the shape of its inputs.
        images: rows have images.
        dropout: the model drops out, so that other shapes are other draws.
        sharded: a rank holds a part of the parameters only.
        paged: transformers' continuous batching generates.
    """

    one_window: bool
    own_head: bool
    own_loss_fn: bool
    images: bool
    dropout: bool
    sharded: bool
    paged: bool


def batching_plan(options: Mapping[str, bool | None], now: Circumstances) -> BatchingPlan:
    """Decide the options that are None.

    `shared_prompt=True` brings `keep_groups` with it.

    Args:
        options: the five options by name: True, False, or None for the default.
        now: what the default depends on.
    """
    same_rows = not (now.images or now.dropout)
    keep_groups = now.one_window and same_rows
    exact = {
        "shared_prompt": keep_groups and now.own_head and not (now.sharded or now.paged),
        "shared_prefill": same_rows,
        "chunked_logps": now.own_head and not now.sharded,
        "keep_groups": keep_groups or options["shared_prompt"] is True,
        "trim_padding": same_rows and not now.own_loss_fn,
    }
    names = [item.name for item in fields(BatchingPlan) if item.name != "asked"]
    chosen: dict[str, Any] = {name: exact[name] if (value := options[name]) is None else value for name in names}
    return BatchingPlan(**chosen, asked=frozenset(name for name in names if options[name] is True))

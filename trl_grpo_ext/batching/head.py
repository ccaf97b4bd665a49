"""Log-probabilities and entropies of given tokens, without more than a bounded part of their logits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from trl_grpo_ext.batching.methods import replaced_method
from trl_grpo_ext.batching.token_statistics import token_statistics

# Logits that are worked on at once: 64 MiB in float32. A chunk has at least one token.
CHUNK_ELEMENTS = 2**24
# Logits that are kept for the backward pass: 2 GiB in float32, 1 in bfloat16. To compute them again costs a third of
# the head's work.
KEPT_ELEMENTS = 2**29

Project = Callable[[torch.Tensor], torch.Tensor]


def chunked_statistics(
    project: Project,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    entropies: bool,
    rows: int,
    kept: int,
) -> torch.Tensor:
    """Return `token_statistics` of the logits of hidden states.

    Args:
        project: the language-model head, (tokens, hidden size) to (tokens, vocabulary).
        hidden: (tokens, hidden size).
        labels: (tokens,).
        temperature: divides the logits.
        entropies: compute the entropy too.
        rows: tokens in a chunk.
        kept: tokens, from the first on, whose logits the backward pass finds kept. It computes those of the others
            again, chunk by chunk.

    Returns:
        (tokens, 1), or (tokens, 2) with the entropies.
    """

    def found(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return token_statistics(project(hidden), labels, temperature, entropies, rows)

    if not torch.is_grad_enabled():
        return torch.cat([found(*chunk) for chunk in zip(hidden.split(rows), labels.split(rows), strict=True)])
    parts = [found(hidden[:kept], labels[:kept])] if kept else []
    later = zip(hidden[kept:].split(rows), labels[kept:].split(rows), strict=True) if kept < len(labels) else ()
    settings = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat([*parts, *(checkpoint(found, *chunk, **settings) for chunk in later)])


@contextmanager
def scoring_head(
    head: Any,
    labels: torch.Tensor,
    temperature: float,
    entropies: bool,
    last: int,
    elements: int = CHUNK_ELEMENTS,
    kept: int = KEPT_ELEMENTS,
) -> Iterator[None]:
    """Let a language-model head return the statistics of `labels` in place of logits, in one call of its model.

    The head stays where it is in the model, so what FSDP, ZeRO-3 and PEFT have hooked to it goes on working.

    Args:
        head: the output embedding of the model.
        labels: (rows, T).
        temperature: divides the logits.
        entropies: compute the entropy too.
        last: trailing positions of the hidden states that come after those which predict `labels`.
        elements: logits in one chunk.
        kept: logits that may be kept for the backward pass.
    """

    def scoring(project: Project) -> Project:
        def forward(hidden: torch.Tensor) -> torch.Tensor:
            stop, vocabulary = hidden.shape[1] - last, head.weight.shape[0]
            used = hidden[:, stop - labels.shape[1] : stop].flatten(0, 1)
            sizes = max(elements // vocabulary, 1), min(kept // vocabulary, labels.numel())
            found = chunked_statistics(project, used, labels.flatten(), temperature, entropies, *sizes)
            return found.view(*labels.shape, -1)

        return forward

    with replaced_method(head, "forward", scoring):
        yield

"""Log-probabilities and entropies of given tokens, chunk by chunk, without the logits of a whole sequence."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

# Elements of one chunk of logits: 64 MiB in float32. A chunk has at least one token.
CHUNK_ELEMENTS = 2**24

Project = Callable[[torch.Tensor], torch.Tensor]


def token_statistics(
    project: Project, hidden: torch.Tensor, labels: torch.Tensor, temperature: float, entropies: bool
) -> torch.Tensor:
    r"""Return log p(label) = z_label - logsumexp(z), z = logits / temperature, and H = -\sum_v p_v log p_v.

    The entropy has no gradient.

    Args:
        project: the language-model head, (tokens, hidden size) to (tokens, vocabulary).
        hidden: (tokens, hidden size).
        labels: (tokens,).
        temperature: divides the logits.
        entropies: compute the entropy too.

    Returns:
        (tokens, 1), or (tokens, 2) with the entropies; at least float32.
    """
    logits = project(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    total = logits.logsumexp(-1)
    found = [logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - total]
    if entropies:
        with torch.no_grad():
            found.append(total - (torch.softmax(logits, -1) * logits).sum(-1))
    return torch.stack(found, dim=-1)


def chunked_statistics(
    project: Project, hidden: torch.Tensor, labels: torch.Tensor, temperature: float, entropies: bool, rows: int
) -> torch.Tensor:
    """Return `token_statistics` of `rows` tokens at a time; the backward pass computes each chunk's logits again."""
    chunks = zip(hidden.split(rows), labels.split(rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([token_statistics(project, *chunk, temperature, entropies) for chunk in chunks])
    settings = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat(
        [checkpoint(token_statistics, project, *chunk, temperature, entropies, **settings) for chunk in chunks]
    )


@contextmanager
def scoring_head(
    head: Any, labels: torch.Tensor, temperature: float, entropies: bool, last: int, elements: int = CHUNK_ELEMENTS
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
    """
    project, own = head.forward, head.__dict__.get("forward")

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        stop = hidden.shape[1] - last
        used = hidden[:, stop - labels.shape[1] : stop].flatten(0, 1)
        rows = max(elements // head.weight.shape[0], 1)
        found = chunked_statistics(project, used, labels.flatten(), temperature, entropies, rows)
        return found.view(*labels.shape, -1)

    head.forward = forward
    try:
        yield
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own

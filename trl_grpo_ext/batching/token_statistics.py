"""Log-probability of a label and entropy, with one copy of the logits for forward and backward pass."""

from typing import Any

import torch


def token_statistics(
    logits: torch.Tensor, labels: torch.Tensor, temperature: float, entropies: bool, rows: int
) -> torch.Tensor:
    r"""Return log p(label) = z_label - logsumexp(z), z = logits / temperature, and H = -\sum_v p_v log p_v.

    The entropy has no gradient. The backward pass writes the gradient over the logits:

        d log p(label) / d logits_v = (1[v = label] - p_v) / temperature

    Args:
        logits: (tokens, vocabulary), used nowhere else.
        labels: (tokens,).
        temperature: divides the logits.
        entropies: compute the entropy too.
        rows: tokens that are worked on at once, in float32 at least.

    Returns:
        (tokens, 1), or (tokens, 2) with the entropies; at least float32.
    """
    found: torch.Tensor = _TokenStatistics.apply(logits, labels, temperature, entropies, rows)
    return found


class _TokenStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, temperature: float, entropies: bool, rows: int
    ) -> torch.Tensor:
        chunks = zip(logits.split(rows), labels.split(rows), strict=True)
        found = [_statistics(_scaled(part, temperature), label, entropies) for part, label in chunks]
        totals = torch.cat([total for total, _ in found])
        ctx.save_for_backward(logits, labels, totals)
        ctx.temperature, ctx.rows = temperature, rows
        return torch.cat([values for _, values in found])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, labels, totals = ctx.saved_tensors
        parts = (value.split(ctx.rows) for value in (logits, labels, totals, gradient[:, 0] / ctx.temperature))
        for part, label, total, weight in zip(*parts, strict=True):
            change = _scaled(part, ctx.temperature).sub_(total.unsqueeze(-1)).exp_().mul_(-weight.unsqueeze(-1))
            change.scatter_add_(-1, label.unsqueeze(-1), weight.unsqueeze(-1).to(change.dtype))
            part.copy_(change)
        return logits, None, None, None, None


def _scaled(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _statistics(scaled: torch.Tensor, labels: torch.Tensor, entropies: bool) -> tuple[torch.Tensor, torch.Tensor]:
    total = scaled.logsumexp(-1)
    found = [scaled.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - total]
    if entropies:
        probabilities = torch.sub(scaled, total.unsqueeze(-1)).exp_()
        found.append(total - probabilities.mul_(scaled).sum(-1))
    return total, torch.stack(found, dim=-1)

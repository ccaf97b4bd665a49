"""What a policy loss is given and what it returns; the interface of a user's own `loss_fn` too."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossInputs:
    """One micro-batch of B completions of at most T tokens.

    Args:
        logps: (B, T) log-probabilities of the completion tokens under the policy, with gradient.
        advantages: (B,), or (B, T) for advantages of single tokens.
        mask: (B, T), bool or 0/1: which tokens count. Values elsewhere are never read, NaN included.
        old_logps: (B, T) under the policy that sampled; None where that is the policy itself (`logps.detach()`).
        ref_logps: (B, T) under the reference model.
        entropies: (B, T) of the token distributions in nats; logged as `entropy`.
        entropy_mask: (B, T), bool or 0/1: tokens whose surrogate counts (TRL's `top_entropy_quantile`); the KL term
            keeps all. None is all.
        importance_weights: (B, T) or (B, 1) factor of the surrogate that corrects for another sampler (TRL's
            `importance_sampling_ratio` with vLLM). None is 1.
        num_items: Completion tokens per rank in one accumulation window, the divisor of loss_type `dapo`; see
            `losses.dapo_num_items`.
        window_tokens: Unmasked tokens of the accumulation window, all its micro-batches and all ranks, the divisor of
            loss_type `token_mean`.
        num_processes: Ranks that average their gradients; only `token_mean` reads it.
        accumulation_steps: Micro-batches in the accumulation window; 1 in evaluation. Losses that are means over a
            micro-batch are divided by it.
        max_completion_length: Longest completion in tokens, the divisor of loss_type `dr_grpo`.
        num_generations: Completions per prompt, for a `loss_fn` that looks at groups; rows of a micro-batch are
            shuffled by TRL, so they need not be neighbours.
        step: Optimizer steps taken.
        progress: Share of the training done, in [0, 1].

    Raises:
        ValueError: for shapes that do not fit together.
    """

    logps: Tensor
    advantages: Tensor
    mask: Tensor
    old_logps: Tensor | None = None
    ref_logps: Tensor | None = None
    entropies: Tensor | None = None
    entropy_mask: Tensor | None = None
    importance_weights: Tensor | None = None
    num_items: float | Tensor | None = None
    window_tokens: float | Tensor | None = None
    num_processes: int = 1
    accumulation_steps: float = 1.0
    max_completion_length: int | None = None
    num_generations: int | None = None
    step: int = 0
    progress: float = 0.0

    def __post_init__(self) -> None:
        if self.logps.dim() != 2:
            raise ValueError(f"logps must have the shape (B, T), not {tuple(self.logps.shape)}.")
        rows, tokens = self.logps.shape
        for name in ("mask", "old_logps", "ref_logps", "entropies", "entropy_mask"):
            self._check_shape(name, [(rows, tokens)])
        self._check_shape("importance_weights", [(rows, tokens), (rows, 1)])
        self._check_shape("advantages", [(rows,), (rows, 1), (rows, tokens)])

    def _check_shape(self, name: str, shapes: list[tuple[int, ...]]) -> None:
        value = getattr(self, name)
        if value is not None and tuple(value.shape) not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise ValueError(f"{name} must have the shape {wanted} to fit logps, not {tuple(value.shape)}.")


@dataclass(frozen=True)
class LossOutputs:
    """What a policy loss returns.

    Args:
        loss: Scalar to call `backward` on, already scaled for gradient accumulation.
        metrics: Name -> number of this micro-batch on this rank; the trainer averages and logs them.
        ratio: (B, T), or (B, 1) at the levels of whole sequences: the detached probability ratio to the clip anchor
            (the old policy for `both`), for quantiles over ranks.
    """

    loss: Tensor
    metrics: dict[str, Tensor | float] = field(default_factory=dict)
    ratio: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.loss, torch.Tensor) or self.loss.numel() != 1:
            shape = tuple(self.loss.shape) if isinstance(self.loss, torch.Tensor) else type(self.loss).__name__
            raise ValueError(f"loss must be a tensor with one element, not {shape}.")

"""Memory per GPU and seconds of one optimizer step on several GPUs, by formula."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from scaling_parts.measured import Coefficients, decode_bytes, hidden_elements, logit_elements, update_flops
from scaling_parts.shapes import HALF, TRAINED, UTILISATION, Hardware, cache_bytes, parameters

RANK = 16


@dataclass(frozen=True)
class Work:
    """What each GPU does in a step: one prompt and its completions in one micro-batch.

    Args:
        prompt: tokens.
        completion: tokens.
        rows: completions.
        checkpointing: keep the layers' inputs only and compute the rest again, as LLaMA-Factory does by default.
    """

    prompt: int = 512
    completion: int = 512
    rows: int = 8
    checkpointing: bool = True


@dataclass(frozen=True)
class Cost:
    """Of one GPU.

    Args:
        weights: bytes of weights, gradients and optimizer state that it keeps.
        rollout: bytes that generation adds: gathered weights and the cache.
        update: bytes that the update adds.
        decode: seconds of reading weights and cache from memory, at the data sheet's speed.
        compute: seconds of the update.
        exchange: seconds of moving weights and gradients between GPUs, none of it hidden behind computing.
    """

    weights: float
    rollout: float
    update: float
    decode: float
    compute: float
    exchange: float

    @property
    def memory(self) -> float:
        """Bytes at the peak: generation and update come one after the other."""
        return self.weights + max(self.rollout, self.update)

    @property
    def seconds(self) -> float:
        """Of the step, at least: kernels start without delay, and rewards cost nothing."""
        return self.decode + self.compute + self.exchange


def lora_parameters(shape: dict[str, Any], rank: int = RANK) -> int:
    """Weights of adapters of all seven matrices of every layer."""
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    small = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    sides = 2 * (width + width) + 2 * (width + small) + 3 * (width + inner)
    return rank * shape["num_hidden_layers"] * sides


def link(hardware: Hardware, gpus: int) -> float:
    """Bytes per second of the slowest connection in the ring."""
    return hardware.link if gpus <= hardware.per_machine else hardware.network


def update_bytes(shape: dict[str, Any], work: Work, found: Coefficients) -> float:
    """Activations in bf16, logits in fp32. The copies per layer are measured, what checkpointing keeps is counted."""
    hidden = found.activation * hidden_elements(shape, work.prompt, work.completion, work.rows)
    if work.checkpointing:
        tokens = work.prompt + work.rows * work.completion
        # The whole of one layer at a time, and every layer's input.
        hidden = hidden / shape["num_hidden_layers"] + tokens * shape["num_hidden_layers"] * shape["hidden_size"]
    return HALF * hidden + 4 * found.logits * logit_elements(shape, work.completion, work.rows)


def cost(shape: dict[str, Any], gpus: int, method: str, work: Work, found: Coefficients, hardware: Hardware) -> Cost:
    """Return the cost of a step.

    Args:
        shape: of the model.
        gpus: data parallel; the work is that of each.
        method: "full": ZeRO-3, generation on the gathered weights (TRL's `ds3_gather_for_generation`, its default);
            "lora": bf16 weights on each GPU, adapters trained.
        work: of each GPU.
        found: measured coefficients.
        hardware: quoted.

    Raises:
        ValueError: another method, or no GPU.
    """
    if method not in ("full", "lora") or gpus < 1:
        raise ValueError(f"method must be full or lora and gpus at least 1, not {method!r} and {gpus}.")
    every = parameters(shape)
    cache = work.rows * (work.prompt + work.completion) * cache_bytes(shape)
    part = (gpus - 1) / gpus
    if method == "full":
        kept, gathered = TRAINED * every / gpus, HALF * every * part
        # Weights forward, weights backward and gradients (arXiv 1910.02054, section 7), and weights for generation.
        moved = 4 * HALF * every * part
    else:
        adapters = lora_parameters(shape)
        kept, gathered = HALF * every + TRAINED * adapters, 0.0
        moved = 2 * HALF * adapters * part
    read = decode_bytes(shape, work.prompt, work.completion, work.rows, HALF)
    # A second forward pass is a third of what an update does.
    flops = update_flops(shape, work.prompt, work.completion, work.rows) * (4 / 3 if work.checkpointing else 1)
    return Cost(
        kept,
        gathered + cache,
        update_bytes(shape, work, found),
        work.completion * read / hardware.bandwidth,
        flops / (UTILISATION * hardware.flops),
        moved / link(hardware, gpus),
    )


def fewest_gpus(
    shape: dict[str, Any], method: str, work: Work, found: Coefficients, hardware: Hardware, most: int = 64
) -> int | None:
    """Return the smallest power of 2 of GPUs whose memory is enough, with a tenth left free; None above `most`."""
    counts = [2**power for power in range(int(math.log2(most)) + 1)]
    fits = (n for n in counts if cost(shape, n, method, work, found, hardware).memory < 0.9 * hardware.memory)
    return next(fits, None)

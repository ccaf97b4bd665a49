"""Completions of many prompts, the same on one rank and on many: each batch has a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Args:
        samples: per problem, 1 by default.
        temperature: 1.0 by default; 0 is greedy, for which more than one sample is refused.
        top_p: nucleus; 1.0, all tokens, by default.
        top_k: 0, all tokens, by default.
        max_new_tokens: 512 by default.
        batch_size: completions drawn at once on a rank, 32 by default. Batches are what seeds are for: other sizes
            give other samples.
        seed: 0 by default.

    Raises:
        ValueError: a value out of range.
    """

    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("max_new_tokens", 1), ("batch_size", 1), ("top_k", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}.")
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise ValueError(f"temperature must be a number of at least 0, not {self.temperature!r}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p!r}.")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"temperature 0 gives the same completion {self.samples} times: set samples to 1.")

    def generation_config(self, pad: int | None, stops: Sequence[int]) -> GenerationConfig:
        """Return the whole configuration: nothing is left to be filled in by the model's own."""
        common: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "pad_token_id": pad}
        common["eos_token_id"] = list(stops) or None
        if self.temperature == 0:
            return GenerationConfig(do_sample=False, **common)
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return GenerationConfig(do_sample=True, **sampling, **common)


@contextmanager
def own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Draw with a seed inside, and leave the generators of the caller as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """The model in eval mode, with its cache, without gradients and without its own generation config."""
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    training, config, cache = model.training, owner.generation_config, getattr(owner.config, "use_cache", None)
    model.eval()
    owner.generation_config = GenerationConfig()
    try:
        with torch.no_grad():
            yield
    finally:
        owner.generation_config = config
        if cache is not None:
            owner.config.use_cache = cache
        model.train(training)


def _padded(ids: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, (rows, longest)."""
    longest = max(len(row) for row in ids)
    tokens = [[pad] * (longest - len(row)) + list(row) for row in ids]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in ids]
    return {"input_ids": torch.tensor(tokens, device=device), "attention_mask": torch.tensor(mask, device=device)}


def _cut(ids: list[int], stops: frozenset[int]) -> tuple[list[int], bool]:
    """The tokens before the first stop, and whether there was none."""
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    return (ids, True) if end is None else (ids[:end], False)


def complete_batch(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, pad: int, stops: Sequence[int], seed: int
) -> list[tuple[list[int], bool]]:
    """Return (completion ids without the stop token, whether it was cut off) per prompt.

    Args:
        model: a causal model that is ready to generate.
        prompts: token ids of each prompt.
        sampling: how to draw.
        pad: token to pad with.
        stops: tokens that end a completion.
        seed: of this batch.
    """
    device = next(model.parameters()).device
    inputs = _padded(prompts, pad, device)
    with own_randomness(device, seed):
        output = model.generate(**inputs, generation_config=sampling.generation_config(pad, stops), use_cache=True)
    new = output[:, inputs["input_ids"].shape[1] :].tolist()
    return [_cut(row, frozenset(stops)) for row in new]


def batches(total: int, size: int) -> list[range]:
    """Return the places of each batch of `size` rows."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def own_batches(count: int, rank: int, ranks: int) -> list[int]:
    """Return the numbers of a rank's batches; every rank has as many, since sharded models generate together.

    The last ones of some ranks are beyond `count`: they stand for the last batch and are drawn for company only.
    """
    return list(range(rank, -(-count // ranks) * ranks, ranks))


def sample_rows(
    rows: Sequence[Mapping[str, Any]],
    ids: Sequence[Sequence[int]],
    sampling: Sampling,
    draw: Callable[[list[Sequence[int]], int], list[tuple[list[int], bool]]],
    decode: Callable[[list[int]], str],
    numbers: Sequence[int] | None = None,
    ranks: tuple[int, int] = (0, 1),
) -> Iterator[list[dict[str, Any]]]:
    """Yield the samples of a rank batch by batch: the row with `sample`, `completion`, `tokens`, `truncated`.

    Args:
        rows: one per problem, with `prompt`.
        ids: token ids of each row's prompt.
        sampling: how to draw.
        draw: from prompts and a seed to completions, as `complete_batch`.
        decode: from ids to text, without special tokens.
        numbers: the batches to draw; all of the rank's by default.
        ranks: this rank, and how many there are.
    """
    places = [(row, sample) for row in range(len(rows)) for sample in range(sampling.samples)]
    plan = batches(len(places), sampling.batch_size)
    for number in own_batches(len(plan), *ranks) if numbers is None else numbers:
        batch = [places[place] for place in plan[min(number, len(plan) - 1)]]
        drawn = draw([ids[row] for row, _ in batch], sampling.seed * 1_000_003 + number)
        if number < len(plan):
            yield [
                {"number": number, **rows[row], "sample": sample, "completion": decode(tokens)}
                | {"tokens": len(tokens), "truncated": truncated}
                for (row, sample), (tokens, truncated) in zip(batch, drawn, strict=True)
            ]

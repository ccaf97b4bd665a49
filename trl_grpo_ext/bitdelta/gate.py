"""A behaviour gate: the compressed model must score nearly what the fine-tuned one does, on whatever you measure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from trl_grpo_ext.bitdelta.config import MAX_MASKS, BitDeltaConfig
from trl_grpo_ext.bitdelta.sources import Checkpoint


@dataclass(frozen=True)
class Gate:
    """A test that a compressed model must pass: every score at least `min_ratio` of the fine-tuned model's.

    Scores below zero must not fall by more than (1 - min_ratio) of their size. The gate measures what you measure; that
    is no claim about anything else.

    Args:
        scores_of: takes a model and returns scores by name, the higher the better; mean rewards, for example.
        min_ratio: least share of the fine-tuned score, in [0, 1].
        on_fail: "escalate", the default, compresses again with one more sign mask and at last without loss; "refuse".

    Raises:
        ValueError: a value outside its range.
    """

    scores_of: Callable[[Any], Mapping[str, float]]
    min_ratio: float = 0.95
    on_fail: str = "escalate"

    def __post_init__(self) -> None:
        if not callable(self.scores_of):
            raise ValueError(f"Gate: scores_of must be a function of a model, not {self.scores_of!r}.")
        if isinstance(self.min_ratio, bool) or not 0 <= self.min_ratio <= 1:
            raise ValueError(f"Gate: min_ratio must be in [0, 1], not {self.min_ratio!r}.")
        if self.on_fail not in ("escalate", "refuse"):
            raise ValueError(f"Gate: on_fail must be escalate or refuse, not {self.on_fail!r}.")

    def scores(self, model: Checkpoint, base: Checkpoint) -> dict[str, float]:
        """Return the scores of a checkpoint, a delta, or a model; one model is in memory at a time."""
        if isinstance(model, nn.Module):
            return _floats(self.scores_of(model))
        from transformers import AutoModelForCausalLM

        delta = (Path(model) / "bitdelta_config.json").is_file()
        options = {"base": base} if delta else {}
        return _floats(self.scores_of(AutoModelForCausalLM.from_pretrained(os.fspath(model), **options)))

    def attempts(self, config: BitDeltaConfig) -> Iterator[BitDeltaConfig]:
        """Yield the configurations to try, each keeping more than the one before."""
        yield config
        if self.on_fail == "escalate" and config.codec != "lossless":
            if config.bits < MAX_MASKS:
                yield replace(config, bits=config.bits + 1)
            yield replace(config, codec="lossless")

    def quality(self, wanted: Mapping[str, float], found: Mapping[str, float]) -> dict[str, Any]:
        """Return both models' scores and whether the compressed one passes."""
        passed = all(
            name in found and found[name] >= score - (1 - self.min_ratio) * abs(score)
            for name, score in wanted.items()
        )
        scores = {"fine_tuned": dict(wanted), "compressed": dict(found)}
        return {"passed": passed, "min_ratio": self.min_ratio, **scores}

    def message(self, quality: Mapping[str, Any]) -> str:
        """Return the scores in one line."""
        before, after = quality["fine_tuned"], quality["compressed"]
        pairs = (f"{name} {score:g} became {after.get(name, float('nan')):g}" for name, score in before.items())
        return f"{', '.join(pairs)}; at least {self.min_ratio:g} of it must remain"


def _floats(scores: Mapping[str, float]) -> dict[str, float]:
    found = {str(name): float(score) for name, score in scores.items()}
    if not found or any(score != score for score in found.values()):
        raise ValueError(f"Gate: scores_of must return numbers by name, at least one, not {scores!r}.")
    return found

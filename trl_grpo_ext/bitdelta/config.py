"""How a delta is compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

CODECS = ("auto", "sign", "lossless")
FITS = ("auto", "mean", "activation")
SCALES = ("matrix", "row", "group")
MAX_MASKS = 4

_WHOLE = {"bits": (1, MAX_MASKS), "residual_rank": (0, 4096), "max_rank": (0, 4096), "shard_size": (1, 1 << 40)}
_SHARES = ("safety_threshold", "low_rank_energy")
_CHOICES = {"codec": CODECS, "fit": FITS, "scale": SCALES}


def _refuse(name: str, rule: str, value: Any) -> None:
    raise ValueError(f"BitDeltaConfig: {name} must be {rule}, not {value!r}.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class BitDeltaConfig:
    """Configuration of delta compression.

    Args:
        bits: sign masks of a dense delta, in [1, 4]; 1 is BitDelta (arXiv 2402.10193), each more one codes what the
            masks before it have left.
        group_size: weights of a row that share a scale, a multiple of 8; None: see `scale`.
        scale: what shares a scale: "matrix" (BitDelta), "row" (the default; costs 16 bits per row), or "group", which
            is what a `group_size` selects.
        fit: how scales are found: "mean" of |delta|; "activation", least squares on the layer's inputs, which needs
            prompts or inputs; "auto", the default: activation where inputs are at hand, else mean.
        safety_threshold: least share of a delta's energy that its sign masks must explain, in [0, 1]. Ordinary
            fine-tunes have about 0.64 (a Gaussian 2/pi), sparse RL deltas far less. What falls below takes the next
            cheapest codec that passes, at last a lossless one. It says nothing about jailbreaks.
        codec: "auto", the ladder; "sign", always signs, whatever they explain (plain BitDelta); "lossless".
        residual_rank: rank of what the signs leave that is kept beside them; 0 keeps none.
        max_rank: largest rank tried for deltas of low rank (merged LoRA); 0 tries none.
        low_rank_energy: least share of the energy that a low-rank code must explain, in [0, 1].
        exact: parts of tensor names that are always kept without loss; embeddings and output heads by default.
        shard_size: most bytes of one file of the delta.

    Raises:
        ValueError: a value of the wrong type or outside its range, or two that contradict each other.
    """

    bits: int = 1
    group_size: int | None = None
    scale: str = "row"
    fit: str = "auto"
    safety_threshold: float = 0.6
    codec: str = "auto"
    residual_rank: int = 0
    max_rank: int = 64
    low_rank_energy: float = 0.95
    exact: tuple[str, ...] = ("embed", "wte", "wpe", "lm_head")
    shard_size: int = 2_000_000_000

    def __post_init__(self) -> None:
        for name, (low, high) in _WHOLE.items():
            value = getattr(self, name)
            if not _is_whole(value) or not low <= value <= high:
                _refuse(name, f"an integer in [{low}, {high}]", value)
        for name in _SHARES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                _refuse(name, "a number in [0, 1]", value)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                _refuse(name, f"one of {', '.join(allowed)}", getattr(self, name))
        self._check_group()
        self._check_exact()

    def _check_group(self) -> None:
        size = self.group_size
        if size is None:
            if self.scale == "group":
                _refuse("group_size", "set with scale='group'; 128 is usual", size)
            return
        if not _is_whole(size) or size < 8 or size % 8:
            _refuse("group_size", "a multiple of 8, at least 8", size)
        if self.scale == "matrix":
            raise ValueError("BitDeltaConfig: group_size and scale='matrix' contradict each other; give one of them.")
        object.__setattr__(self, "scale", "group")

    def _check_exact(self) -> None:
        if isinstance(self.exact, str) or not all(isinstance(part, str) and part for part in self.exact):
            _refuse("exact", "a list of parts of tensor names", self.exact)
        object.__setattr__(self, "exact", tuple(self.exact))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON has them."""
        return asdict(self) | {"exact": list(self.exact)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> BitDeltaConfig:
        """Return the configuration of a mapping.

        Raises:
            ValueError: a name that there is not, or a value outside its range.
        """
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"BitDeltaConfig: unknown setting {unknown[0]!r}; there are {', '.join(sorted(known))}.")
        return cls(**values)

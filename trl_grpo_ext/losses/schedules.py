"""Clip ranges that change during training: annealed, or held at a wanted clip fraction."""

import dataclasses
import math
from typing import Any, Literal

from trl_grpo_ext.losses.config import LossConfig, check_choice, check_range

ClipScheduleKind = Literal["constant", "linear", "cosine", "adaptive"]

_WITHOUT_RANGE = ("soft", "none", "kl_cov")


class ClipSchedule:
    r"""A factor on `epsilon` and `epsilon_high` over the course of training.

        constant   1
        linear     1 + (final_factor - 1) p                                  p = progress in [0, 1]
        cosine     final_factor + (1 - final_factor) (1 + cos(pi p)) / 2
        adaptive   after each measured clip fraction f:  factor <- factor (1 + gain clip((f - target) / target, -1, 1))

    Adaptive widens the range while more than the target share is clipped and narrows it while less is. On-policy
    (`num_iterations` 1, anchor `old`) nothing is ever clipped, so it narrows down to `min_factor`.

    Args:
        kind: One of the above.
        final_factor: Factor at the end of a linear or cosine schedule, above 0.
        target_fraction: Wanted share of clipped tokens, in (0, 1); adaptive only.
        gain: Relative change per update at full error, in (0, 1); adaptive only.
        min_factor: Lowest adaptive factor, above 0 and at most 1.
        max_factor: Highest adaptive factor, at least 1.

    Raises:
        ValueError: for a value out of range, and for a value that the kind does not read.
    """

    def __init__(
        self,
        kind: ClipScheduleKind = "constant",
        final_factor: float | None = None,
        target_fraction: float | None = None,
        gain: float = 0.1,
        min_factor: float = 0.1,
        max_factor: float = 10.0,
    ) -> None:
        check_choice("clip_schedule", kind, ["constant", "linear", "cosine", "adaptive"])
        _check_reads(kind, "final_factor", final_factor, ("linear", "cosine"))
        _check_reads(kind, "target_fraction", target_fraction, ("adaptive",))
        check_range("final_factor", final_factor, 0.0, open_low=True)
        check_range("target_fraction", target_fraction, 0.0, 1.0, open_low=True)
        check_range("gain", gain, 0.0, 1.0, open_low=True)
        check_range("min_factor", min_factor, 0.0, 1.0, open_low=True)
        check_range("max_factor", max_factor, 1.0)
        self.kind = kind
        self.final_factor = final_factor
        self.target_fraction = target_fraction
        self.gain = gain
        self.min_factor = min_factor
        self.max_factor = max_factor
        self._adaptive_factor = 1.0

    def factor(self, progress: float) -> float:
        """The factor at a share `progress` of the training, which is cut to [0, 1]."""
        if self.kind == "adaptive":
            return self._adaptive_factor
        if self.final_factor is None:
            return 1.0
        progress = min(max(progress, 0.0), 1.0)
        if self.kind == "linear":
            return 1 + (self.final_factor - 1) * progress
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * progress)) / 2

    def apply(self, config: LossConfig, progress: float) -> LossConfig:
        """`config` with its ranges at that share of the training."""
        factor = self.factor(progress)
        high = None if config.epsilon_high is None else config.epsilon_high * factor
        return dataclasses.replace(config, epsilon=config.epsilon * factor, epsilon_high=high)

    def observe(self, clip_fraction: float) -> None:
        """Take a measured clip fraction; kinds other than adaptive, and values that are not finite, change nothing."""
        if self.target_fraction is None or not math.isfinite(clip_fraction):
            return
        error = min(max((clip_fraction - self.target_fraction) / self.target_fraction, -1.0), 1.0)
        wanted = self._adaptive_factor * (1 + self.gain * error)
        self._adaptive_factor = min(max(wanted, self.min_factor), self.max_factor)

    def check(self, config: LossConfig) -> None:
        """Refuse a loss without a clip range, or one whose other bounds the widest range would cross.

        Raises:
            ValueError: naming what cannot combine.
        """
        if self.kind == "constant":
            return
        if config.clip_kind in _WITHOUT_RANGE:
            raise ValueError(
                f"clip_schedule {self.kind!r} does nothing with clip_kind {config.clip_kind!r}, which has no clip "
                "range: use clip_schedule 'constant', or another clip_kind."
            )
        widest = self.max_factor if self.kind == "adaptive" else max(1.0, self.final_factor or 1.0)
        if (
            config.clip_kind == "dual"
            and config.delta is not None
            and config.delta <= 1 + config.epsilon_upper * widest
        ):
            raise ValueError(
                f"clip_schedule {self.kind!r} may widen the upper clip range to {config.epsilon_upper * widest:g}, "
                f"past delta {config.delta:g} - 1: raise delta, or lower final_factor or max_factor."
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on."""
        return {"factor": self._adaptive_factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._adaptive_factor = float(state["factor"])


def _check_reads(kind: str, name: str, value: float | None, kinds: tuple[str, ...]) -> None:
    if (value is None) == (kind in kinds):
        verb = "needs" if value is None else "does not read"
        options = " or ".join(map(repr, kinds))
        raise ValueError(f"clip_schedule {kind!r} {verb} {name}; it belongs to clip_schedule {options}.")

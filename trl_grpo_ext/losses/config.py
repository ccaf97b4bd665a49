"""The options of the policy loss, and which of them combine."""

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from trl_grpo_ext._suggest import did_you_mean
from trl_grpo_ext.kl import KLEstimator

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "token_mean"]
Level = Literal["token", "sequence", "sequence_token", "geometric"]
Anchor = Literal["old", "reference", "both"]
ClipKind = Literal["hard", "asymmetric", "dual", "soft", "none", "clip_cov", "kl_cov"]
KLPlace = Literal["loss", "reward"]

_COVARIANCE = ("clip_cov", "kl_cov")
_TAKES_DELTA = ("hard", "asymmetric", "dual")


@dataclass(frozen=True)
class LossConfig:
    """Orthogonal choices of the clipped group-relative loss; TRL's name where TRL has the option.

    Args:
        loss_type: How token losses are averaged: `grpo`, `bnpo`, `dr_grpo`, `dapo` as in TRL, or `token_mean`, the
            exact mean over all tokens of an optimizer step on all ranks. See `losses.aggregation`.
        importance_sampling_level: `token` (PPO), `sequence` (GSPO, arXiv 2507.18071), `sequence_token` (GSPO-token) or
            `geometric` (GMPO, arXiv 2507.20673: clipped in log space). See `losses.ratios`.
        clip_anchor: What the probability ratio is taken against: `old`, the policy that sampled; `reference`, the
            frozen reference model, a trust region around it that stops learning on every token that has drifted
            past the range; `both`, the smaller of the two surrogates.
        clip_kind: `hard` (PPO), `asymmetric` (DAPO, arXiv 2503.14476: `epsilon_high` required), `dual` (arXiv
            1912.09729: `delta` required), `soft` (SAPO, arXiv 2511.20347), `none`, `clip_cov` or `kl_cov` (arXiv
            2505.22617). See `losses.clipping` and `losses.covariance`.
        epsilon: Lower clip range: the ratio is clipped at `1 - epsilon`. At level `geometric` the log ratio is
            clipped at `-epsilon` (the paper's value is 0.4).
        epsilon_high: Upper clip range; None is `epsilon`.
        delta: Upper bound of the ratio where the advantage is negative (TRL's `delta`); None is no bound.
        soft_temperature_positive: Temperature of the soft gate for advantages above 0 (SAPO: 1.0).
        soft_temperature_negative: The same for the other advantages (SAPO: 1.05).
        cov_fraction: Share of the tokens that Clip-Cov detaches or KL-Cov penalises (paper: 2e-4).
        cov_low: Lowest covariance of a token that Clip-Cov may detach (the authors' code: 1.0).
        cov_high: Highest covariance of a token that Clip-Cov may detach (the authors' code: 5.0).
        cov_kl_coef: Weight of KL-Cov's penalty `|logp - old_logp|` (paper: 1.0).
        cov_seed: Seed of Clip-Cov's choice of tokens; it is drawn from (seed, step), so a resumed run repeats it.
        beta: Coefficient of the KL penalty; 0 is none.
        kl_estimator: `k1`, `k2` or `k3`; see `kl.kl_estimate`.
        kl_place: `loss`, or `reward`: then the loss has no KL term and `kl.penalize_rewards` subtracts it.
        use_bias_correction_kl: Multiply the KL term, where it is in the loss, by the probability ratio to the old
            policy (TRL's option, arXiv 2512.02556; True by default in TRL since 1.10, absent from 0.24).

    Raises:
        ValueError: for a value out of range, and for choices that cannot combine.
    """

    loss_type: LossType = "dapo"
    importance_sampling_level: Level = "token"
    clip_anchor: Anchor = "old"
    clip_kind: ClipKind = "hard"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    soft_temperature_positive: float = 1.0
    soft_temperature_negative: float = 1.05
    cov_fraction: float = 2e-4
    cov_low: float = 1.0
    cov_high: float = 5.0
    cov_kl_coef: float = 1.0
    cov_seed: int = 0
    beta: float = 0.0
    kl_estimator: KLEstimator = "k3"
    kl_place: KLPlace = "loss"
    use_bias_correction_kl: bool = False

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(type(self)).items():
            if options := [item for item in get_args(annotation) if isinstance(item, str)]:
                check_choice(name, getattr(self, name), options)
        self._check_ranges()
        self._check_clip()
        self._check_level()

    @property
    def epsilon_upper(self) -> float:
        """`epsilon_high`, or `epsilon` where that is None."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def needs_reference(self) -> bool:
        """Whether `LossInputs.ref_logps` must be given, or the rewards need them."""
        return self.clip_anchor != "old" or self.beta != 0.0

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss itself holds a KL term."""
        return self.beta != 0.0 and self.kl_place == "loss"

    def _check_ranges(self) -> None:
        check_range("epsilon", self.epsilon, 0.0)
        check_range("epsilon_high", self.epsilon_high, 0.0)
        check_range("delta", self.delta, 0.0, open_low=True)
        check_range("soft_temperature_positive", self.soft_temperature_positive, 0.0, open_low=True)
        check_range("soft_temperature_negative", self.soft_temperature_negative, 0.0, open_low=True)
        check_range("cov_fraction", self.cov_fraction, 0.0, 1.0, open_low=True)
        check_range("cov_kl_coef", self.cov_kl_coef, 0.0)
        check_range("beta", self.beta, 0.0)
        if not self.cov_low < self.cov_high:
            raise ValueError(f"cov_low must be below cov_high ({self.cov_high}), not {self.cov_low}.")

    def _check_clip(self) -> None:
        if self.clip_kind == "asymmetric" and self.epsilon_high is None:
            raise ValueError("clip_kind 'asymmetric' needs epsilon_high: give it, or use clip_kind 'hard'.")
        if self.clip_kind == "dual" and (self.delta is None or self.delta <= 1 + self.epsilon_upper):
            raise ValueError(
                f"clip_kind 'dual' needs a delta above 1 + the upper clip range ({1 + self.epsilon_upper:g}), not "
                f"{self.delta}; the dual-clip paper uses 3."
            )
        if self.delta is not None and self.clip_kind not in _TAKES_DELTA:
            raise ValueError(
                f"delta does nothing with clip_kind {self.clip_kind!r}: leave it unset, or use clip_kind 'dual'."
            )

    def _check_level(self) -> None:
        level = self.importance_sampling_level
        if level == "geometric" and (self.clip_kind == "soft" or self.delta is not None):
            used = "clip_kind 'soft'" if self.clip_kind == "soft" else f"delta {self.delta}"
            raise ValueError(
                f"importance_sampling_level 'geometric' clips the log ratio of each token and cannot combine with "
                f"{used}: use clip_kind 'hard', 'asymmetric' or 'none' without delta."
            )
        if self.clip_kind in _COVARIANCE and (level != "token" or self.clip_anchor != "old"):
            raise ValueError(
                f"clip_kind {self.clip_kind!r} chooses single tokens by their ratio to the sampling policy and needs "
                f"importance_sampling_level 'token' and clip_anchor 'old', not {level!r} and {self.clip_anchor!r}."
            )


def check_choice(name: str, value: object, options: list[str]) -> None:
    """Raise a ValueError that lists the options when `value` is none of them."""
    if value not in options:
        raise ValueError(
            f"{name} must be one of {', '.join(options)}, not {value!r}{did_you_mean(str(value), options)}."
        )


def check_range(name: str, value: float | None, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Raise a ValueError unless `value` is None or a finite number in [low, high], or in (low, high]."""
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (open_low and value == low):
        bound = f"above {low:g}" if open_low else f"at least {low:g}"
        raise ValueError(
            f"{name} must be a finite number {bound}{f' and at most {high:g}' if high < math.inf else ''}, not {value!r}."
        )

"""Settings of papers by name: pure data.

The keys are field names of `ExtendedGRPOConfig`: TRL's own where TRL has the option (`loss_type`, `scale_rewards`,
`epsilon`, ...), those of `losses.LossConfig` for the loss (`clip_anchor`, `clip_kind`, `kl_estimator`, `kl_place`, ...),
and those of `advantages.AdvantageConfig` behind `advantage_` (`advantage_baseline`, `advantage_scale`, ...).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from trl_grpo_ext._suggest import did_you_mean

__all__ = ["PRESETS", "preset"]

_PRESETS: dict[str, dict[str, Any]] = {
    # TRL's default, both in 0.24 and in 1.16: DAPO's token mean with the symmetric clip.
    "trl": {"loss_type": "dapo", "scale_rewards": "group", "epsilon": 0.2},
    # arXiv 2402.03300
    "grpo": {"loss_type": "grpo", "scale_rewards": "group"},
    "bnpo": {"loss_type": "bnpo", "scale_rewards": "group"},
    # arXiv 2503.20783
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    # arXiv 2503.14476: loss and clip; dynamic sampling and overlong filtering are options of their own.
    "dapo": {"loss_type": "dapo", "scale_rewards": "group", "epsilon": 0.2, "epsilon_high": 0.28},
    # arXiv 2507.18071
    "gspo": {
        "loss_type": "grpo",
        "scale_rewards": "group",
        "importance_sampling_level": "sequence",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
    },
    # arXiv 2507.20673: the range is in log space, (exp(-0.4), exp(0.4)).
    "gmpo": {
        "loss_type": "grpo",
        "scale_rewards": "group",
        "importance_sampling_level": "geometric",
        "epsilon": 0.4,
        "epsilon_high": 0.4,
    },
    # arXiv 2601.22582, eps of the authors' code. Wants an odd num_generations, G + 1: the pivot then has advantage 0.
    "mc_grpo": {
        "loss_type": "grpo",
        "advantage_baseline": "median",
        "advantage_scale": "mad",
        "advantage_eps": 1e-3,
    },
    # arXiv 2402.14740 on GRPO's trainer: REINFORCE with the mean of the others as baseline, divided by a constant and
    # not by the completion's length, as the paper's sum over tokens is. With a KL penalty (beta above 0) the paper's
    # is kl_place "reward" with kl_estimator "k1".
    "rloo": {
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        "advantage_baseline": "leave_one_out",
        "clip_kind": "none",
    },
    # Standardised by the group's population standard deviation, clipped against the old policy.
    "normalized_clip": {
        "loss_type": "grpo",
        "scale_rewards": "group",
        "advantage_ddof": 0,
        "advantage_eps": 1e-8,
        "epsilon": 0.2,
    },
    # Centred only, clipped against the reference model: a trust region around it.
    "reference_clip": {
        "loss_type": "grpo",
        "scale_rewards": "none",
        "clip_anchor": "reference",
        "epsilon": 0.2,
    },
}
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {name: MappingProxyType(values) for name, values in _PRESETS.items()}
)


def preset(name: str) -> dict[str, Any]:
    """A copy of the preset's settings.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {name!r}{did_you_mean(name, PRESETS)}.")
    return dict(PRESETS[name])

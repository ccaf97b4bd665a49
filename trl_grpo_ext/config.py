"""`ExtendedGRPOConfig`: TRL's GRPOConfig with the options of this package."""

import copy
from dataclasses import dataclass, field, fields
from typing import Any

from trl_grpo_ext import batching_checks, config_checks
from trl_grpo_ext._compat import config_kwargs, import_trl
from trl_grpo_ext.advantages import AdvantageConfig
from trl_grpo_ext.losses import ClipSchedule, LossConfig
from trl_grpo_ext.presets import preset

_SCALES = {"group": "std", "batch": "batch", "none": "none"}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ExtendedGRPOConfig(import_trl().GRPOConfig):  # type: ignore[misc]
    r"""TRL's `GRPOConfig` and the options of `ExtendedGRPOTrainer`; every default is TRL's behaviour.

    Options of batching that are None are on where they are exact, and off elsewhere (docs/batching.md).

    `loss_type` also takes `token_mean` and `importance_sampling_level` also `sequence_token` and `geometric`. As soon
    as one option of the loss is set, the loss is `losses.policy_loss`; until then it is TRL's own.

    Raises:
        ValueError: a value out of range, or options that do not work together; before any model is loaded.
    """

    loss_backend: str = _option("auto", "`auto`: TRL's loss until an option here needs ours; `extended`: always ours.")
    loss_fn: str | None = _option(
        None, "`package.module:function` taking LossInputs, returning LossOutputs; it replaces the loss."
    )
    clip_anchor: str = _option("old", "Policy that the ratio is taken against: `old`, `reference`, or `both`.")
    clip_kind: str = _option("hard", "`hard`, `asymmetric`, `dual`, `soft`, `none`, `clip_cov` or `kl_cov`.")
    soft_temperature_positive: float = _option(1.0, "Gate temperature for advantages above 0 (clip_kind `soft`).")
    soft_temperature_negative: float = _option(1.05, "Gate temperature for other advantages (clip_kind `soft`).")
    cov_fraction: float = _option(2e-4, "Share of tokens that `clip_cov` detaches or `kl_cov` penalises.")
    cov_low: float = _option(1.0, "Lowest covariance of a token that `clip_cov` may detach.")
    cov_high: float = _option(5.0, "Highest covariance of a token that `clip_cov` may detach.")
    cov_kl_coef: float = _option(1.0, "Weight of the penalty of `kl_cov`.")
    clip_schedule: str = _option("constant", "Clip range over training: `constant`, `linear`, `cosine`, `adaptive`.")
    clip_final_factor: float | None = _option(None, "Factor of the clip range at the end of `linear` and `cosine`.")
    clip_target_fraction: float | None = _option(None, "Share of clipped tokens that `adaptive` aims at.")
    kl_estimator: str = _option("k3", "KL estimator: `k1`, `k2`, or `k3` (TRL's).")
    kl_place: str = _option("loss", "KL penalty as a term of the `loss`, or subtracted from the `reward`.")
    kl_target: float | None = _option(None, "KL per token in nats that `beta` is steered to; unset: constant beta.")

    loss_context: str = _option(
        "injected", "Prompt that completions with experiences in theirs are learned with: `injected`, or `plain`."
    )
    off_policy_correction: str = _option(
        "clip", "For completions learned with another prompt than they were sampled with: `clip`, `truncate`, `shape`."
    )
    off_policy_cap: float = _option(2.0, "Largest importance weight of `truncate`.")
    off_policy_gamma: float = _option(0.1, "gamma of the weight r gamma / (r + gamma)^2 of `shape` (LUFFY).")

    advantage_baseline: str = _option("mean", "`mean`, `leave_one_out` (RLOO) or `median` (MC-GRPO).")
    advantage_scale: str | None = _option(None, "`std`, `mad`, `batch`, `none`; unset: as scale_rewards says.")
    advantage_ddof: int = _option(1, "Standard deviation divides by n - ddof: 1 (TRL) or 0 (population).")
    advantage_eps: float = _option(1e-4, "Added to the divisor of the advantages (TRL: 1e-4).")
    advantage_floor: float = _option(0.0, "Least divisor, which keeps near-constant groups from exploding.")
    advantage_clip: float | None = _option(None, "Advantages are clipped to [-clip, clip].")
    advantage_ranks: bool = _option(False, "Use the ranks of the rewards in their group instead of the rewards.")

    zero_variance_groups: str = _option(
        "keep", "Groups with equal rewards: `keep` (TRL), `keep_for_normaliser` (no KL term), or `drop`."
    )
    dynamic_sampling_rounds: int = _option(
        0, "How often groups with equal rewards are replaced by other prompts (bounded dynamic sampling of DAPO)."
    )
    group_filter: str | None = _option(
        None, "`shortest`, `reward_per_token` (GFPO), or `package.module:function`: which completions to learn from."
    )
    group_filter_keep: int | None = _option(None, "Completions of each group that group_filter keeps, at least 2.")
    curriculum_column: str | None = _option(None, "Column with the difficulty of each prompt, higher is harder.")
    curriculum_band: list[float] | None = field(
        default=None, metadata={"help": "Solve rate to hold, `[low, high]`; default [0.25, 0.75]."}
    )
    curriculum_step: float = _option(0.05, "Step of the target difficulty, as a share of the difficulties' range.")
    curriculum_solved_reward: float = _option(1.0, "A completion solves its prompt from this total reward on.")
    eval_temperature: float | None = _option(
        None, "Temperature of evaluation rollouts, 0 is greedy; default: temperature."
    )

    shared_prompt: bool | None = _option(
        None, "Encode each prompt once for all its completions of a micro-batch, in every log-probability pass."
    )
    shared_prefill: bool | None = _option(
        None, "Encode each prompt once for all its completions in generation with transformers' `generate`."
    )
    keep_groups: bool | None = _option(
        None, "Shuffle groups, not rows, into micro-batches, long ones first where that can't change the loss."
    )
    trim_padding: bool | None = _option(None, "Trim every micro-batch to its own longest prompt and completion.")
    chunked_logps: bool | None = _option(
        None, "Hold one copy of a bounded part of the logits at most; TRL >= 1.15 has its own way."
    )
    skip_entropy: bool = _option(False, "Compute no entropy in training, and do not log it.")
    skip_zero_advantages: bool = _option(False, "Leave rows of advantage 0 out of the policy's pass.")

    def __post_init__(self) -> None:
        super().__post_init__()
        config_checks.check(self)

    @property
    def uses_extended_loss(self) -> bool:
        """Whether the loss is this package's, or a user's, and not TRL's."""
        level_of_ours = self.importance_sampling_level in config_checks.OWN_LEVELS
        changed = self.changed(config_checks.LOSS_OPTIONS)
        return self.loss_backend == "extended" or level_of_ours or bool(changed) or self.loss_type == "token_mean"

    @property
    def uses_extended_advantages(self) -> bool:
        """Whether advantages are computed here and not by TRL."""
        return bool(self.changed(config_checks.ADVANTAGE_OPTIONS)) or self.kl_place == "reward"

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities of a reference model are needed, at a KL coefficient of 0 too."""
        return self.beta != 0.0 or self.clip_anchor != "old"

    @property
    def off_policy_options(self) -> tuple[str, float, float]:
        """The last arguments of `off_policy.reweighted`."""
        return self.off_policy_correction, self.off_policy_cap, self.off_policy_gamma

    @property
    def solve_rate_band(self) -> tuple[float, float]:
        """`curriculum_band`, or its default."""
        low, high = self.curriculum_band or (0.25, 0.75)
        return low, high

    @property
    def orders_groups(self) -> bool:
        """Whether the loss is the same in whichever order an accumulation window's rows come."""
        per_micro_batch = self.loss_type == "bnpo" or self.loss_fn or self.clip_kind in ("clip_cov", "kl_cov")
        return not per_micro_batch and self.top_entropy_quantile >= 1.0 and not batching_checks.entropy_bonus(self)

    @property
    def one_window(self) -> bool:
        """Whether a generation is one optimizer step, whose rows may come in any order."""
        one = self.steps_per_generation == self.gradient_accumulation_steps and self.num_iterations == 1
        return one and self.orders_groups

    def loss_config(self) -> LossConfig:
        """Return the options of `losses.policy_loss`."""
        names = [item.name for item in fields(LossConfig) if hasattr(self, item.name)]
        values = {name: getattr(self, name) for name in names} | {"cov_seed": self.seed}
        if self.kl_place == "reward":
            # On by default in TRL >= 1.10; without a KL term in the loss there is nothing to correct.
            values["use_bias_correction_kl"] = False
        return LossConfig(**values)

    def make_clip_schedule(self) -> ClipSchedule:
        """Return the schedule of the clip range."""
        return ClipSchedule(self.clip_schedule, self.clip_final_factor, self.clip_target_fraction)  # type: ignore[arg-type]

    def advantage_config(self, num_generations: int | None = None) -> AdvantageConfig:
        """Return the options of `advantages.group_advantages`, for `num_generations` rows per group."""
        return AdvantageConfig(
            num_generations=num_generations or self.num_generations,
            baseline=self.advantage_baseline,  # type: ignore[arg-type]
            scale=self.advantage_scale or _SCALES[self.scale_rewards],  # type: ignore[arg-type]
            ddof=self.advantage_ddof,
            eps=self.advantage_eps,
            floor=self.advantage_floor,
            clip=self.advantage_clip,
            ranks=self.advantage_ranks,
        )

    def changed(self, names: tuple[str, ...]) -> list[str]:
        """Return those of `names` whose value is not the default."""
        defaults = {item.name: item.default for item in fields(self)}
        return [name for name in names if getattr(self, name) != defaults[name]]

    @classmethod
    def from_preset(cls, name: str, **settings: Any) -> "ExtendedGRPOConfig":
        """Make a config with the settings of a paper by name (see `presets`); what is given beside it wins.

        Raises:
            ValueError: an unknown preset, or settings that do not work together.
        """
        return cls(**preset(name) | settings)

    @classmethod
    def from_grpo_config(cls, config: Any) -> "ExtendedGRPOConfig":
        """Return a copy of TRL's own config with our defaults beside its values."""
        if isinstance(config, cls):
            return config
        # Not through `__init__`: it would derive batch sizes and devices anew, from values that are derived already.
        extended = copy.copy(config)
        extended.__class__ = cls
        return extended

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ExtendedGRPOConfig":
        """Make the config that `to_dict()` was called on.

        TRL derives one of `generation_batch_size` and `steps_per_generation` from the other and refuses both, so the
        first is left out when both are there.

        Raises:
            ValueError: a name that no field has.
        """
        values = dict(values)
        if values.get("steps_per_generation") is not None:
            values.pop("generation_batch_size", None)
        known = {item.name for item in fields(cls) if item.init}
        config_kwargs(**{name: value for name, value in values.items() if name not in known})
        return cls(**values)

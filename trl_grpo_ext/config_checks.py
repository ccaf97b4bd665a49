"""What `ExtendedGRPOConfig` refuses, each in one sentence, before any model is loaded."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from trl_grpo_ext.batching_checks import check_batching
from trl_grpo_ext.losses.config import check_choice, check_range
from trl_grpo_ext.off_policy import CORRECTIONS
from trl_grpo_ext.sampling import GROUP_FILTERS, ZERO_VARIANCE_POLICIES

OWN_LEVELS = ("sequence_token", "geometric")
_SOFT = ("soft_temperature_positive", "soft_temperature_negative")
_CLIP_COV = ("cov_low", "cov_high")
_OFF_POLICY = ("off_policy_correction", "off_policy_cap", "off_policy_gamma")
LOSS_OPTIONS = (
    *("loss_fn", "clip_anchor", "clip_kind", *_SOFT, "cov_fraction", *_CLIP_COV, "cov_kl_coef"),
    *("kl_estimator", "kl_place", *_OFF_POLICY),
)
ADVANTAGE_OPTIONS = (
    *("advantage_baseline", "advantage_scale", "advantage_ddof", "advantage_eps", "advantage_floor", "advantage_clip"),
    "advantage_ranks",
)
_WITHOUT_CLIP_RANGE = ("sapo", "vespo")
_CURRICULUM = ("curriculum_band", "curriculum_step", "curriculum_solved_reward")
# Options of TRL that its own loss reads, and ours does not; with the value that means "off".
_ONLY_IN_TRL_LOSS = {
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "off_policy_mask_threshold": None,
    "router_aux_loss_coef": None,
    "use_liger_loss": False,
}


def check(config: Any) -> None:
    """Raise a ValueError for the first thing in an `ExtendedGRPOConfig` that can't work.

    Raises:
        ValueError: names the option, the rule, the value and the way out.
    """
    check_choice("loss_backend", config.loss_backend, ["auto", "extended"])
    _check_conditions(config)
    _check_contexts(config)
    _check_loss(config)
    _check_clip_schedule(config)
    _check_advantages(config)
    _check_sampling(config)
    _check_curriculum(config)
    check_batching(config)
    if "logits_processor" in (config.generation_kwargs or {}):
        raise ValueError(
            "generation_kwargs: rollouts that a logits_processor bends are off-policy, and TRL would not hand it on: remove "
            "it, and use it with model.generate."
        )
    check_range("eval_temperature", config.eval_temperature, 0.0)
    if config.eval_temperature is not None and config.use_vllm:
        raise ValueError(
            f"eval_temperature={config.eval_temperature} does nothing with use_vllm, which has one temperature: unset "
            "it, or evaluate without vLLM."
        )


def load_function(name: str, spec: str) -> Any:
    """Import `package.module:function`.

    Raises:
        ValueError: the text has another form, or there is no such function.
    """
    module, separator, function = spec.partition(":")
    if not (module and separator and function):
        raise ValueError(f'{name} must look like "package.module:function", not {spec!r}.')
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}={spec!r} can't be imported: {error}. Is its folder on PYTHONPATH?") from error
    if not callable(found):
        raise ValueError(f"{name}={spec!r} must be a function, not a {type(found).__name__}.")
    return found


def _only_with(config: Any, names: Sequence[str], option: str, values: Sequence[object]) -> None:
    """Refuse an option that would be read by nobody."""
    value = getattr(config, option)
    for name in config.changed(tuple(names)) if value not in values else ():
        raise ValueError(
            f"{name}={getattr(config, name)!r} does nothing with {option}={value!r}: unset it, or set {option} to "
            f"{' or '.join(map(repr, values))}."
        )


def _check_conditions(config: Any) -> None:
    _only_with(config, _SOFT, "clip_kind", ["soft"])
    _only_with(config, ["cov_fraction"], "clip_kind", ["clip_cov", "kl_cov"])
    _only_with(config, _CLIP_COV, "clip_kind", ["clip_cov"])
    _only_with(config, ["cov_kl_coef"], "clip_kind", ["kl_cov"])
    _only_with(config, ["off_policy_cap"], "off_policy_correction", ["truncate"])
    _only_with(config, ["off_policy_gamma"], "off_policy_correction", ["shape"])
    _only_with(config, ["clip_final_factor"], "clip_schedule", ["linear", "cosine"])
    _only_with(config, ["clip_target_fraction"], "clip_schedule", ["adaptive"])
    for name in config.changed(("kl_estimator", "kl_place", "kl_target")) if config.beta == 0.0 else ():
        raise ValueError(
            f"{name}={getattr(config, name)!r} does nothing with beta=0.0: unset it, or set beta above 0."
        )


def _check_contexts(config: Any) -> None:
    check_choice("loss_context", config.loss_context, ["injected", "plain"])
    check_choice("off_policy_correction", config.off_policy_correction, list(CORRECTIONS))
    check_range("off_policy_cap", config.off_policy_cap, 0.0, open_low=True)
    check_range("off_policy_gamma", config.off_policy_gamma, 0.0, open_low=True)
    needed = {"importance_sampling_level": "token", "clip_anchor": "old"}
    for name, value in needed.items() if config.off_policy_correction != "clip" else ():
        if getattr(config, name) != value:
            raise ValueError(
                f"off_policy_correction={config.off_policy_correction!r} weighs single tokens by their ratio to the "
                f"policy that sampled: it needs {name}={value!r}, not {getattr(config, name)!r}."
            )
    if config.loss_context == "injected":
        return
    for name, wrong, why in (
        ("kl_place", "reward", "a penalty for whole completions compares log-probabilities under one prompt"),
        ("clip_anchor", "reference", "the ratio must be to the policy that sampled"),
    ):
        if getattr(config, name) == wrong:
            raise ValueError(f"loss_context='plain' does not work with {name}={wrong!r}: {why}. Unset one of them.")


def _check_loss(config: Any) -> None:
    if config.loss_fn is not None:
        load_function("loss_fn", config.loss_fn)
        own = [name for name in config.changed((*LOSS_OPTIONS, "clip_schedule")) if name != "loss_fn"]
        if own:
            raise ValueError(
                f"{own[0]} does nothing with loss_fn={config.loss_fn!r}, which replaces the loss: unset one."
            )
    if not config.uses_extended_loss:
        return
    config.loss_config()
    for name, off in _ONLY_IN_TRL_LOSS.items():
        if getattr(config, name, off) not in (off, None):
            raise ValueError(
                f"{name}={getattr(config, name)!r} is an option of TRL's loss and does not work with ours, which "
                f"{(config.changed(LOSS_OPTIONS) or ['loss_backend'])[0]} asks for: unset one of them."
            )
    if config.loss_type == "token_mean" and config.steps_per_generation % config.gradient_accumulation_steps:
        raise ValueError(
            "loss_type 'token_mean' needs every accumulation window inside one generation: steps_per_generation "
            f"({config.steps_per_generation}) must be a multiple of gradient_accumulation_steps "
            f"({config.gradient_accumulation_steps})."
        )


def _check_clip_schedule(config: Any) -> None:
    needed = {"linear": "clip_final_factor", "cosine": "clip_final_factor", "adaptive": "clip_target_fraction"}
    name = needed.get(config.clip_schedule)
    if name and getattr(config, name) is None:
        raise ValueError(f"clip_schedule={config.clip_schedule!r} needs {name}: set it, or use 'constant'.")
    schedule = config.make_clip_schedule()
    if config.uses_extended_loss:
        schedule.check(config.loss_config())
    elif config.clip_schedule != "constant" and config.loss_type in _WITHOUT_CLIP_RANGE:
        raise ValueError(
            f"clip_schedule={config.clip_schedule!r} does nothing with loss_type={config.loss_type!r}, which has no "
            "clip range: use 'constant'."
        )


def _check_advantages(config: Any) -> None:
    config.advantage_config()
    aggregation = getattr(config, "multi_objective_aggregation", "sum_then_normalize")
    ours = config.changed((*ADVANTAGE_OPTIONS, "kl_place", "group_filter", "dynamic_sampling_rounds"))
    if aggregation != "sum_then_normalize" and ours:
        raise ValueError(
            f"{ours[0]} needs the sum of the rewards and does not work with "
            f"multi_objective_aggregation={aggregation!r}: use 'sum_then_normalize'."
        )
    if config.advantage_scale is not None and config.scale_rewards != "group":
        raise ValueError(
            f"advantage_scale={config.advantage_scale!r} and scale_rewards={config.scale_rewards!r} say two things: "
            "leave scale_rewards at 'group', or advantage_scale unset."
        )


def _check_sampling(config: Any) -> None:
    check_choice("zero_variance_groups", config.zero_variance_groups, list(ZERO_VARIANCE_POLICIES))
    if config.zero_variance_groups == "keep_for_normaliser" and config.loss_type == "bnpo":
        raise ValueError(
            "zero_variance_groups='keep_for_normaliser' has no normaliser to stay in with loss_type='bnpo', which "
            "divides by the tokens of the loss itself: use 'drop' or 'keep'."
        )
    if config.zero_variance_groups == "drop" and (
        getattr(config, "entropy_coef", 0.0) or getattr(config, "use_adaptive_entropy", False)
    ):
        raise ValueError("zero_variance_groups='drop' would rescale the entropy bonus too: use 'keep', or no bonus.")
    rounds = config.dynamic_sampling_rounds
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 0:
        raise ValueError(f"dynamic_sampling_rounds must be a whole number, 0 or more, not {rounds!r}.")
    _check_group_filter(config)


def _check_group_filter(config: Any) -> None:
    keep, chosen = config.group_filter_keep, config.group_filter
    if (keep is None) != (chosen is None):
        raise ValueError(
            f"group_filter ({chosen!r}) and group_filter_keep ({keep!r}) work together: set both, or none."
        )
    if chosen is None:
        return
    if not isinstance(keep, int) or not 2 <= keep < config.num_generations:
        raise ValueError(
            f"group_filter_keep must be a whole number from 2 to num_generations - 1 ({config.num_generations - 1}), "
            f"not {keep!r}: advantages compare at least two completions."
        )
    if ":" in chosen:
        load_function("group_filter", chosen)
    else:
        check_choice("group_filter", chosen, [*GROUP_FILTERS, "package.module:function"])


def _check_curriculum(config: Any) -> None:
    for name in config.changed(_CURRICULUM) if config.curriculum_column is None else ():
        raise ValueError(
            f"{name}={getattr(config, name)!r} does nothing without curriculum_column: set it, or unset this."
        )
    check_range("curriculum_step", config.curriculum_step, 0.0, 1.0, open_low=True)
    band = config.curriculum_band
    if band is not None and not (len(band) == 2 and 0.0 <= band[0] < band[1] <= 1.0):
        raise ValueError(f"curriculum_band must be [low, high] with 0 <= low < high <= 1, not {band!r}.")

"""Which options stand against the options of batching, known from the config alone."""

from typing import Any

from trl_grpo_ext._compat import has_chunked_head


def entropy_bonus(config: Any) -> str | None:
    """Return the option that puts the entropy into TRL's loss, if one is set."""
    return next((name for name in ("entropy_coef", "use_adaptive_entropy") if getattr(config, name, False)), None)


def needs_logits(config: Any) -> list[str]:
    """Return the options that are set and need TRL's logits, or a gradient that our log-probability passes lack."""
    names = ("router_aux_loss_coef", "use_liger_loss", "torch_compile", "cast_lm_head_to_fp32")
    return [name for name in (entropy_bonus(config), *(_set(config, item) for item in names)) if name]


def pages_the_cache(config: Any) -> str | None:
    """Return the option by which transformers' continuous batching generates, if it is set."""
    names = ("use_transformers_paged", "use_transformers_continuous_batching")
    return next((name for name in names if getattr(config, name, False)), None)


def check_batching(config: Any) -> None:
    """Refuse what was asked for beside an option that needs what it leaves out.

    Raises:
        ValueError: names both options.
    """
    bonus, liger = entropy_bonus(config), _set(config, "use_liger_loss")
    quantile = "top_entropy_quantile" if config.top_entropy_quantile < 1.0 else None
    of_tokens = "clip_kind" if config.clip_kind in ("clip_cov", "kl_cov") else None
    user, beta, router = _set(config, "loss_fn"), _set(config, "beta"), _set(config, "router_aux_loss_coef")
    adaptive = "clip_schedule" if config.clip_schedule == "adaptive" else None
    excluded = {
        "shared_prompt": (*needs_logits(config), pages_the_cache(config)),
        "chunked_logps": () if has_chunked_head() else needs_logits(config),
        "skip_entropy": (bonus, quantile, user, liger),
        "skip_zero_advantages": (beta, bonus, quantile, of_tokens, user, adaptive, router, liger),
    }
    for name, others in excluded.items():
        for other in filter(None, others if getattr(config, name) else ()):
            raise ValueError(
                f"{name}=True does not work with {other}={getattr(config, other)!r}, which needs what it leaves out: "
                "unset one of them."
            )


def _set(config: Any, name: str) -> str | None:
    return name if getattr(config, name, None) else None

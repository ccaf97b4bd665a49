"""What a model must be like for the shared-prompt forward and for log-probabilities in chunks."""

from inspect import signature
from typing import Any

from trl_grpo_ext.batching.attention import NAME

# Decoders whose layers call the attention interface with nothing but causal attention, and hand on keyword arguments.
SHARING_MODEL_TYPES = frozenset({"gpt2", "llama", "mistral", "qwen2", "qwen3"})
# What a model does to logits after its head, by the name of the option in its config.
_AFTER_THE_HEAD = (
    *("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier"),
)


def bare_model(model: Any) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def no_chunks_because(model: Any) -> str | None:
    """Return why log-probabilities can't be computed in chunks through the model's head; None if they can."""
    if any(getattr(item, "is_prompt_learning", False) for item in getattr(model, "peft_config", {}).values()):
        return "its PEFT method puts virtual tokens before the prompt"
    bare = bare_model(model)
    head, config = bare.get_output_embeddings(), bare.config.get_text_config()
    if getattr(head, "weight", None) is None:
        return "it has no output embedding"
    changed = [name for name in _AFTER_THE_HEAD if getattr(config, name, None) is not None]
    return f"it changes the logits after its head ({changed[0]})" if changed else None


def no_sharing_because(model: Any) -> str | None:
    """Return why a prompt can't be encoded once for its group; None if it can."""
    config = bare_model(model).config
    if config.model_type not in SHARING_MODEL_TYPES:
        return f"its type {config.model_type!r} is none of {sorted(SHARING_MODEL_TYPES)}"
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"} or _slides(config):
        return "it has layers without full attention"
    if config._attn_implementation not in ("sdpa", NAME):
        return f"its attention is {config._attn_implementation!r}, not 'sdpa'"
    return no_chunks_because(model)


def _slides(config: Any) -> bool:
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)


def takes_logits_to_keep(model: Any) -> bool:
    """Whether the model can leave out the hidden states of other positions than the last ones before its head."""
    return "logits_to_keep" in signature(bare_model(model).forward).parameters


def moves_with_its_positions(config: Any) -> bool:
    """Whether shifting all positions of a row changes nothing: rotary embeddings whose frequencies are fixed."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = {rope.get("rope_type", rope.get("type", "default"))}
    rotary = bool(rope) or getattr(config, "rope_theta", None) is not None
    return rotary and not kinds & {"dynamic", "longrope"}

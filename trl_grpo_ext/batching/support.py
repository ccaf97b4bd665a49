"""What a model must be like for each part of this folder; each answer is a reason against it, or None."""

from inspect import signature
from typing import Any

import torch

from trl_grpo_ext.batching.attention import NAME

# Decoders whose layers call the attention interface with nothing but causal attention, and hand on keyword arguments.
SHARING_MODEL_TYPES = frozenset({"gpt2", "llama", "mistral", "qwen2", "qwen3"})
# What a model does to logits after its head, by the name of the option in its config.
_AFTER_THE_HEAD = (
    *("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier"),
)
# Rotary embeddings whose frequencies depend on the length of the batch.
_FREQUENCIES_OF_THE_LENGTH = frozenset({"dynamic", "longrope"})


def bare_model(model: Any) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def no_chunks_because(model: Any) -> str | None:
    """Return why log-probabilities can't be computed in chunks through the model's head; None if they can."""
    bare = bare_model(model)
    head, config = bare.get_output_embeddings(), bare.config.get_text_config()
    if getattr(head, "weight", None) is None:
        return "it has no output embedding"
    changed = [name for name in _AFTER_THE_HEAD if getattr(config, name, None) is not None]
    return f"it changes the logits after its head ({changed[0]})" if changed else peft_reason(model)


def no_sharing_because(model: Any) -> str | None:
    """Return why a prompt can't be encoded once for its group; None if it can."""
    config = bare_model(model).config
    if config.model_type not in SHARING_MODEL_TYPES:
        return f"its type {config.model_type!r} is none of {sorted(SHARING_MODEL_TYPES)}"
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"} or _slides(config):
        return "it has layers without full attention"
    if config._attn_implementation not in ("sdpa", NAME):
        return f"its attention is {config._attn_implementation!r}, not 'sdpa'"
    if frequencies_of_the_length(config):
        return "its rotary frequencies depend on the length of the batch"
    return dropout_reason(model) or no_chunks_because(model)


def peft_reason(model: Any) -> str | None:
    """Return why the PEFT method of a model stands against it; None for LoRA and its like."""
    for item in getattr(model, "peft_config", {}).values():
        if getattr(item, "is_prompt_learning", False):
            return "its PEFT method puts virtual tokens before the prompt"
        if getattr(item, "alora_invocation_tokens", None):
            return "its PEFT method begins at a token of the prompt (aLoRA)"
    return None


def dropout_reason(model: Any) -> str | None:
    """Return that a model has dropout: one encoding of a prompt would have one draw of it for all completions."""
    if any(_drops(module) for module in model.modules()):
        return "it has dropout, of which each row needs a draw of its own (disable_dropout=True turns it off)"
    return None


def sharded_reason(accelerator: Any) -> str | None:
    """Return that a rank holds a part of the parameters only."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        return "DeepSpeed ZeRO-3 shards its parameters"
    return "FSDP shards its parameters" if str(accelerator.distributed_type).endswith("FSDP") else None


def takes(model: Any, name: str) -> bool:
    """Whether the transformers model takes this input; `logits_to_keep` leaves out positions before its head."""
    return name in signature(bare_model(model).forward).parameters


def moves_with_its_positions(config: Any) -> bool:
    """Whether shifting all positions of a row changes nothing: rotary embeddings."""
    return bool(_rope(config)) or getattr(config, "rope_theta", None) is not None


def frequencies_of_the_length(config: Any) -> bool:
    """Whether the rotary frequencies depend on how long the longest row of a batch is."""
    rope = _rope(config)
    of_each_kind = [rope, *(item for item in rope.values() if isinstance(item, dict))]
    return any(item.get("rope_type", item.get("type")) in _FREQUENCIES_OF_THE_LENGTH for item in of_each_kind)


def _rope(config: Any) -> dict[str, Any]:
    return getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}


def _slides(config: Any) -> bool:
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)


def _drops(module: torch.nn.Module) -> bool:
    # An attention layer hands a number of its own to SDPA, such as `attention_dropout`.
    own = [value for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]
    return any(share > 0.0 for share in ([module.p] if isinstance(module, torch.nn.Dropout) else own))

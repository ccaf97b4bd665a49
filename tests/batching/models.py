"""Tiny models of several architectures, and trainers on the ragged prompts of a real run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conformance.runs import CHARACTERS, DEFAULTS, rows, tokenizer
from trl_grpo_ext import ExtendedGRPOConfig, ExtendedGRPOTrainer, import_trl, prepare_model

ALL = {
    **{"shared_prompt": True, "shared_prefill": True, "chunked_logps": True, "trim_padding": True},
    "keep_groups": True,
}
OFF = dict.fromkeys(ALL, False)
IDS = {"vocab_size": 2 + len(CHARACTERS), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
SIZES = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 128},
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 128}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mistral": SIZES | {"sliding_window": None},
    "qwen2": SIZES,
    "qwen3": SIZES | {"head_dim": 8},
    "gpt2": GPT2 | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
UNSUPPORTED: dict[str, dict[str, Any]] = {
    "gemma2": SIZES | {"head_dim": 4},
    "gpt_neox": {name: value for name, value in SIZES.items() if name != "num_key_value_heads"},
    "mistral": SIZES | {"sliding_window": 4},
}


def build(kind: str, sizes: dict[str, Any], seed: int = 0) -> Any:
    """A random model; its weights are large enough for attention to matter."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **sizes, **IDS)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model.float()


def uneven(completions: list[str], **kwargs: Any) -> list[float]:
    """Varies inside most groups."""
    return [len(text) + 2.0 * text.count("7") - text.count("#") for text in completions]


def make(extended: bool, model: Any, folder: Path, **settings: Any) -> Any:
    """TRL's trainer or ours on a model; eight rows to an optimizer step. `prompt_copies` makes every prompt longer."""
    classes = (ExtendedGRPOTrainer, ExtendedGRPOConfig) if extended else _stock()
    peft_config, reward = settings.pop("peft_config", None), settings.pop("reward", uneven)
    copies = settings.pop("prompt_copies", 1)
    data = rows().map(lambda row: {"prompt": row["prompt"] * copies})
    chosen = DEFAULTS | {"learning_rate": 0.05, "loss_type": "grpo", "max_completion_length": 7} | settings
    return classes[0](
        model=prepare_model(model),
        reward_funcs=[reward],
        args=classes[1](output_dir=str(folder), **chosen),
        train_dataset=data,
        eval_dataset=data.select(range(8)),
        processing_class=tokenizer(),
        peft_config=peft_config,
    )


def _stock() -> tuple[Any, Any]:
    return import_trl().GRPOTrainer, import_trl().GRPOConfig


def watched_gradients(trainer: Any) -> list[dict[str, torch.Tensor]]:
    """Every gradient at each optimizer step from now on; and the loss of each micro-batch as `trainer.seen_losses`."""
    seen: list[dict[str, torch.Tensor]] = []
    losses: list[float] = []
    compute = trainer.compute_loss

    def compute_loss(*args, **kwargs):
        loss = compute(*args, **kwargs)
        losses.append(loss.item())
        return loss

    trainer.compute_loss, trainer.seen_losses = compute_loss, losses
    trainer.create_optimizer()

    def hook(optimizer, args, kwargs):
        named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
        seen.append({name: value.grad.clone() for name, value in named if value.grad is not None})

    trainer.optimizer.register_step_pre_hook(hook)
    return seen

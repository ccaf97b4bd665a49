"""The models, the two arms, and their trainers."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen2Config, Qwen2ForCausalLM

from trl_grpo_ext import ExtendedGRPOConfig, ExtendedGRPOTrainer, import_trl, prepare_model

CUDA = torch.cuda.is_available()
ARMS = ("stock", "ours")
# Exact, also in what is logged: the entropy is computed in both arms.
OURS = dict.fromkeys(("shared_prompt", "shared_prefill", "chunked_logps", "trim_padding", "keep_groups"), True)
TOY = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4}
MODELS = {
    "quick": TOY | {"num_hidden_layers": 2, "vocab_size": 4096},
    "toy": TOY | {"num_hidden_layers": 4, "vocab_size": 32768},
    # The layers and the vocabulary of Qwen2.5-0.5B, which has 24 such layers.
    "half_billion": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 2}
    | {"num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
}
FULL_DEPTH = 24
PAD, EOS, WORDS = 0, 1, 4000


def sizes(model: str, layers: int | None = None) -> dict[str, Any]:
    """The sizes of a model, with another number of layers where one is given."""
    return MODELS[model] | ({"num_hidden_layers": layers} if layers else {})


def make_model(shape: dict[str, Any]) -> Qwen2ForCausalLM:
    """Random weights, the same at every call."""
    torch.manual_seed(0)
    config = Qwen2Config(**shape, max_position_embeddings=4096, pad_token_id=PAD, eos_token_id=EOS)
    return prepare_model(Qwen2ForCausalLM(config))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words `w2` to `w3999`, one token each, and no others."""
    words = Tokenizer(WordLevel({"<pad>": PAD, "<eos>": EOS} | {f"w{i}": i for i in range(2, WORDS)}, "<pad>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def prompts(length: int, count: int = 4) -> Dataset:
    """Distinct prompts of `length` tokens."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(2, WORDS, (count, length), generator=draw).tolist()
    return Dataset.from_dict({"prompt": [" ".join(f"w{i}" for i in row) for row in ids]})


def length_reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """Differs within a group, because the lengths do."""
    return [len(ids) / 100 for ids in completion_ids]


def classes(arm: str) -> tuple[Any, Any, dict[str, Any]]:
    """Trainer, config, and the settings that only this arm has."""
    if arm == "ours":
        return ExtendedGRPOTrainer, ExtendedGRPOConfig, OURS
    return import_trl().GRPOTrainer, import_trl().GRPOConfig, {}


def make_trainer(
    arm: str, shape: dict[str, Any], folder: str, prompt: int, completion: int, group: int, rows: int, **more: Any
) -> Any:
    """A trainer of one step, in which one group is generated; both arms have the same settings."""
    trainer_class, config_class, own = classes(arm)
    settings = {"output_dir": folder, "report_to": [], "max_steps": 1, "disable_tqdm": True, "loss_type": "grpo"}
    settings |= {"logging_strategy": "no", "save_strategy": "no", "use_cpu": not CUDA, "bf16": CUDA}
    settings |= {"per_device_train_batch_size": rows, "gradient_accumulation_steps": group // rows}
    settings |= {"num_generations": group, "max_completion_length": completion, "gradient_checkpointing": False}
    # With a learning rate of 0 every step is of the same weights.
    settings |= {"learning_rate": 0.0, "beta": 0.0, "seed": 0}
    if "max_prompt_length" in {field.name for field in fields(config_class)}:
        settings["max_prompt_length"] = None
    trainer = more.pop("trainer_class", trainer_class)(
        model=make_model(shape),
        reward_funcs=[length_reward],
        args=config_class(**(settings | own | more)),
        train_dataset=prompts(prompt),
        processing_class=make_tokenizer(),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer

"""Tiny models and data, made here, and training runs whose parameters can be compared with TRL's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_grpo_ext import import_trl, prepare_model

CHARACTERS = "17 #.say"
PROMPTS = ("say ", "1 ", "7 ", "# ")
GROUP = 4
DEFAULTS: dict[str, Any] = {
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_generations": GROUP,
    "max_completion_length": 5,
    # Adam divides by the size of the gradient, and so makes a rounding error of a small one as large as a step.
    "optim": "sgd",
    # Large enough for ratios to leave the clip range in the second iteration.
    "learning_rate": 1.0,
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": [],
    "disable_tqdm": True,
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = {token: index for index, token in enumerate(["<pad>", "<eos>", *CHARACTERS])}
    model = Tokenizer(WordLevel(words, unk_token="<pad>"))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def build_model(folder: Path) -> Path:
    """Save a random model, so that a reference can be loaded by its name."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=2 + len(CHARACTERS), **sizes, **ids)).save_pretrained(folder)
    return folder


def rows(**columns: Any) -> Dataset:
    return Dataset.from_list([{"prompt": PROMPTS[i % len(PROMPTS)], **columns} for i in range(64)])


def wordy(completions: list[str], **kwargs: Any) -> list[float]:
    """Varies inside most groups."""
    return [len(text) + 2.0 * text.count("7") - text.count("#") for text in completions]


def make_trainer(
    trainer_class: Any,
    config_class: Any,
    model: Path,
    folder: Path,
    *,
    reward: Callable[..., list[Any]] = wordy,
    data: Dataset | None = None,
    peft_config: Any = None,
    callbacks: list[Any] | None = None,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A trainer of either class on the same weights, data and seed."""
    data = rows() if data is None else data
    config = config_class(output_dir=str(folder), **DEFAULTS | settings)
    return trainer_class(
        model=prepare_model(LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)),
        reward_funcs=reward if isinstance(reward, list) else [reward],
        args=config,
        train_dataset=data,
        eval_dataset=data.select(range(min(8, len(data)))),
        processing_class=tokenizer(),
        peft_config=peft_config,
        callbacks=callbacks,
        **options or {},
    )


def stock(model: Path, folder: Path, **settings: Any) -> Any:
    trl = import_trl()
    return make_trainer(trl.GRPOTrainer, trl.GRPOConfig, model, folder, **settings)


def extended(model: Path, folder: Path, **settings: Any) -> Any:
    from trl_grpo_ext import ExtendedGRPOConfig, ExtendedGRPOTrainer

    return make_trainer(ExtendedGRPOTrainer, ExtendedGRPOConfig, model, folder, **settings)


def trained(trainer: Any) -> Any:
    """Train it. Making a trainer seeds the generators, so the next one is made after this."""
    trainer.train()
    return trainer


def parameters(trainer: Any) -> dict[str, torch.Tensor]:
    """The trained parameters, by name."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def logged(trainer: Any, name: str) -> list[float]:
    """A metric at every logging step that has it."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = 5e-6) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=0.0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


def assert_moved(after: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
    assert max((after[name] - before[name]).abs().max().item() for name in after) > 1e-3

"""Training runs with experiences in their prompts: a tokenizer that gives every prompt back as text, and what was seen."""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_grpo_ext import ExperienceLibrary, ExtendedGRPOConfig, ExtendedGRPOTrainer, Lesson, import_trl, prepare_model

GROUP = 4
QUESTIONS = ("what is one and two?", "name the red bird", "spell seven", "where does a river end?")
LESSONS = ("Count twice.", "Birds can be red.")
CHAT_TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
DEFAULTS: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 2 * GROUP,
    "per_device_eval_batch_size": 2 * GROUP,
    "num_generations": GROUP,
    "max_completion_length": 4,
    "optim": "sgd",
    "learning_rate": 1.0,
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": [],
    "disable_tqdm": True,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character."""
    words = {token: index for index, token in enumerate(["<pad>", "<eos>", *string.printable])}
    model = Tokenizer(WordLevel(words, unk_token="<pad>"))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=2 + len(string.printable), **sizes, **ids))


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def rows(conversational: bool = False, questions: tuple[str, ...] = QUESTIONS, **columns: Any) -> Dataset:
    texts = [questions[i % len(questions)] for i in range(32)]
    return Dataset.from_list([{"prompt": messages(text) if conversational else text, **columns} for text in texts])


def text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def vowels(completions: list[Any], **kwargs: Any) -> list[float]:
    """Varies inside most groups."""
    return [len(text_of(item)) + sum(text_of(item).count(vowel) for vowel in "aeiouAEIOU") for item in completions]


def make_trainer(
    folder: Path, callbacks: Any = (), *, data: Any = None, rewards: Any = None, ours: bool = False, **settings: Any
) -> Any:
    """TRL's trainer, or ours, on the same weights, data and seed."""
    trl, data = import_trl(), rows() if data is None else data
    maker, config = (ExtendedGRPOTrainer, ExtendedGRPOConfig) if ours else (trl.GRPOTrainer, trl.GRPOConfig)
    return maker(
        model=prepare_model(build_model()),
        reward_funcs=rewards or [vowels],
        args=config(output_dir=str(folder), **DEFAULTS | settings),
        train_dataset=data,
        eval_dataset=data.select(range(2)),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
    )


def lessons_library(path: Path | None = None, texts: tuple[str, ...] = LESSONS) -> ExperienceLibrary:
    library = ExperienceLibrary(path, seed=0)
    library.add(*(Lesson(text) for text in texts))
    return library


def decoded(trainer: Any, ids: torch.Tensor, mask: torch.Tensor) -> list[str]:
    """Prompts as texts, without padding."""
    return [trainer.processing_class.decode(row[keep.bool()]) for row, keep in zip(ids, mask, strict=True)]


@contextmanager
def watching(trainer: Any) -> Iterator[dict[str, list[str]]]:
    """The prompts that the model generates from, and those whose log-probabilities are in the loss."""
    seen: dict[str, list[str]] = {"generated": [], "learned": []}
    generate, loss = trainer.model.generate, trainer._compute_loss

    def watched_generate(*args: Any, **kwargs: Any) -> Any:
        seen["generated"] += decoded(trainer, kwargs["input_ids"], kwargs["attention_mask"])
        return generate(*args, **kwargs)

    def watched_loss(model: Any, inputs: Any) -> Any:
        seen["learned"] += decoded(trainer, inputs["prompt_ids"], inputs["prompt_mask"])
        return loss(model, inputs)

    trainer.model.generate, trainer._compute_loss = watched_generate, watched_loss
    try:
        yield seen
    finally:
        trainer.model.generate, trainer._compute_loss = generate, loss


def watched_training(trainer: Any, **kwargs: Any) -> dict[str, list[str]]:
    with watching(trainer) as seen:
        trainer.train(**kwargs)
    return seen


def parameters(trainer: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in trainer.model.parameters()])


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def contents(library: ExperienceLibrary) -> list[tuple[Any, ...]]:
    """What a library holds, but for the times."""
    held = []
    for item in library.records():
        record = item.record
        parts = (record.text,) if isinstance(record, Lesson) else (record.prompt, record.response, record.advantage)
        held.append((*parts, item.uses, round(item.gain, 9)))
    return held

"""What the snippets run on: a tiny Llama and its tokenizer, made here, and names for the pseudo-code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.gym.catalogue import runnable
from trl_grpo_ext import gym

CHARACTERS = "4x= 10"
NAMES = ("ExperimentConfig", "GRPOArguments", "GRPOConfig", "GRPOTrainer", "TrainingFreeGRPO")


def make_tokenizer() -> Any:
    """One token per character; what is none of them is `<unk>`."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<pad>", "<eos>", "<unk>", *CHARACTERS]
    tokenizer = Tokenizer(WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(.|\n)"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", model_input_names=inputs, **special
    )


def make_model(seed: int = 0, positions: int = 256) -> Any:
    """So few tokens that the end of a text is one of nine: completions are short without a limit."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=3 + len(CHARACTERS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def rows(count: int, **columns: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{number}x = {4 * number}", **columns} for number in range(1, count + 1)]


def has_four(query: str, response: str) -> float:
    return float("4" in response)


class Speaker:
    """The two methods that the documents' pseudo-code asks of a model, over the tiny Llama."""

    def __init__(self, seed: int = 0) -> None:
        self.llama, self.tokenizer = make_model(seed), make_tokenizer()

    def _ids(self, text: str) -> torch.Tensor:
        return self.tokenizer(text, return_tensors="pt")["input_ids"]

    def generate(self, query: str, num_samples: int | None = None) -> Any:
        ids = self._ids(query)
        settings = {"max_new_tokens": 6, "do_sample": True, "num_return_sequences": num_samples or 1}
        found = self.llama.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        texts = self.tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True)
        return texts if num_samples else texts[0]

    def log_prob(self, query: str, response: str) -> torch.Tensor:
        """Of the response and its end."""
        prompt, answer = self._ids(query), self._ids(response + "<eos>")
        ids = torch.cat([prompt, answer], dim=1)
        logps = self.llama(ids).logits[0, prompt.shape[1] - 1 : -1].log_softmax(-1)
        return logps.gather(-1, answer[0, :, None]).sum()


class Stage:
    """One snippet's working directory and model files.

    Args:
        name: of the snippet.
        folder: the working directory.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.text = runnable(name)
        self.name, self.folder, self.tokenizer = name, folder, make_tokenizer()

    def execute(self, text: str | None = None, **names: Any) -> dict[str, Any]:
        """Run the snippet, with the package's names where it has no import line, and return what it leaves."""
        known = {name: getattr(gym, name) for name in NAMES}
        space = known | names
        exec(compile(self.text if text is None else text, self.name, "exec"), space)
        return space

    def saved(self, name: str, **model: int) -> str:
        """Save a tiny model under a name, relative to the working directory, and return the name."""
        make_model(**model).save_pretrained(name)
        self.tokenizer.save_pretrained(name)
        return name

    def loaded(self, name: str) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.saved(name))


def first_weight(model: Any) -> torch.Tensor:
    return model.lm_head.weight.detach().cpu().clone()

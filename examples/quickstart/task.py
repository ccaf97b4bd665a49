"""The quickstart's task and model, made on the spot: nothing is downloaded.

Two-digit addition with the answer digits reversed (`47+85=` -> `231`): the last digit comes first, so that every digit
needs only what is already written and a 0.64 M-parameter Llama can learn it. Of the 10,000 problems 1,000 are held out
of SFT and of GRPO, and every accuracy the quickstart reports is on those.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

logging.disable_progress_bar()

SPLIT_SEED = 1234
HELD_OUT = 1000
MAX_NEW_TOKENS = 4  # three digits and <eos>
TOKENS = ["<pad>", "<bos>", "<eos>", *"0123456789+-*= "]

# Without <eos> after the assistant's turn the model would never be shown where an answer stops. LLaMA-Factory derives
# its own template from this one when the YAML leaves `template` unset.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def problem(a: int, b: int) -> dict[str, str]:
    """One row in LLaMA-Factory's alpaca format."""
    return {"instruction": f"{a}+{b}=", "output": str(a + b)[::-1]}


def problems() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """All 10,000 problems as (training, held out), the same split on every machine."""
    pairs = [(a, b) for a in range(100) for b in range(100)]
    random.Random(SPLIT_SEED).shuffle(pairs)
    rows = [problem(a, b) for a, b in pairs]
    return rows[HELD_OUT:], rows[:HELD_OUT]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, with a chat template."""
    core = Tokenizer(WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
        # A hand-made fast tokenizer also emits token_type_ids by default, and `generate()` refuses those.
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """A randomly initialised Llama of 642,176 parameters."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def make_task(output: Path, seed: int = 0) -> None:
    """Write `data/` (with its dataset_info.json) and `model/` into the output folder."""
    data = output / "data"
    data.mkdir(parents=True, exist_ok=True)
    train, held_out = problems()
    files = {"addition_sft": train, "addition_grpo": train, "addition_heldout": held_out}
    columns = {"prompt": "instruction", "response": "output"}
    info = {name: {"file_name": f"{name}.json", "columns": columns} for name in files}
    (data / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    for name, rows in files.items():
        (data / f"{name}.json").write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(output / "model")
    make_model(tokenizer, seed).save_pretrained(output / "model")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("quickstart"))
    make_task(parser.parse_args().output)

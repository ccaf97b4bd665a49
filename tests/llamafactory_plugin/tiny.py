"""A tiny Qwen2 with a real BPE tokenizer, and small datasets in LLaMA-Factory's formats, all made here."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<think>",
    "</think>",
]
# Unlike LLaMA-Factory's template `qwen`, it has no default system message: the two render different prompts.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "red blue green apple pear plum cat dog bird sun moon star one two three four five six".split()


def questions(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of instruction and output: name the second of three words."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        words = generator.sample(WORDS, 3)
        rows.append({"instruction": f"Which word is second: {' '.join(words)}?", "output": words[1]})
    return rows


def build_model(folder: Path, dropout: float = 0.0, seed: int = 0, hidden_size: int = 32) -> Path:
    """Save a 2-layer Qwen2 and its tokenizer to `folder`."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        attention_dropout=dropout,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Texts that end in an empty line: "\n\n" becomes one token there, and two when more text follows.
    texts = [f"{row['instruction']} {row['output']}\n\n" for row in questions(200)]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[1:],
        model_input_names=["input_ids", "attention_mask"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def write_dataset(folder: Path, name: str, rows: list[dict[str, Any]], **info: Any) -> None:
    """Add one dataset to `folder` and to its dataset_info.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    path = folder / "dataset_info.json"
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entries[name] = {"file_name": f"{name}.json", **info}
    path.write_text(json.dumps(entries), encoding="utf-8")

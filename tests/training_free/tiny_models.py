"""A tiny untrained model with a tokenizer of one token per character, and the real one where it is at hand."""

import os
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = "abcdefghij0123456789 .?\n"
TEMPLATE = "{% for m in messages %}{{ m['role'][0] + ' ' + m['content'] + '\n' }}{% endfor %}a "
REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("SHARED", REPOSITORY.parent / "shared"))
STORIES = SHARED / "models" / "stories260K"


def make_tokenizer(template=TEMPLATE):
    vocabulary = ["<pad>", "<eos>", *CHARACTERS]
    tokenizer = Tokenizer(WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(.|\n)"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", chat_template=template
    )


def make_model(tokenizer, seed=0, **settings):
    """Weights large enough that the next token depends on the prompt."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        **settings,
    )
    return LlamaForCausalLM(config)

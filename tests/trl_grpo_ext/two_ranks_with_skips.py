"""Run by torchrun: one step of a group that lies on two ranks, one row of which is skipped."""

import gc
import os
import sys
from pathlib import Path

import torch
from adapter_runs import GROUP, dataset, make_trainer
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_grpo_ext.rewards.skips import ExcludeSkipped

RANK = int(os.environ["RANK"])
# What the two rows of each rank get: mean 3 over the valid rows, 2.25 with the skipped one as 0.
REWARDS = ([1.0, None], [2.0, 6.0])


def by_rank(completions, **kwargs):
    return REWARDS[RANK]


def tokenizer():
    words = Tokenizer(WordLevel({t: i for i, t in enumerate(["<pad>", "<eos>", *"17 #.say"])}, unk_token="<pad>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def model():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=10, pad_token_id=0, bos_token_id=1, eos_token_id=1, **sizes))


trainer = make_trainer(
    model(), tokenizer(), Path(sys.argv[1]), [by_rank], dataset({}), 1, [ExcludeSkipped()],
    per_device_train_batch_size=GROUP // 2, scale_rewards="none",
)  # fmt: skip
compute_loss, used = trainer._compute_loss, []
trainer._compute_loss = lambda model, inputs: used.extend(inputs["advantages"].tolist()) or compute_loss(model, inputs)
trainer.train()
# TRL shuffles the rows of a rank.
print(f"rank {RANK}: {sorted(used)} of {list(trainer._logs['advantages'])}", flush=True)
# A rank that ends while its trainer still holds gloo's threads aborts now and then.
trainer = compute_loss = None
torch.distributed.destroy_process_group()
gc.collect()

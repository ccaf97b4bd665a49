"""Does GRPO learn from the reward? The same training with the true reward and with a negative control.

    python examples/trl/reward_control.py
    torchrun --nproc_per_node 2 examples/trl/reward_control.py

A word-level Llama of a few thousand parameters, made here, is rewarded for words of the chosen answer
(`preference_overlap`). The shuffled control hands the same rewards to random rows: the mean is still the true mean,
but nothing drives it upwards; it drifts by about 0.1. Needs no download and no GPU; about 20 seconds on one core.
"""

import argparse
import os
import tempfile

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from trl_grpo_ext import apply_reward_control, config_kwargs, import_trl, preference_overlap, prepare_model

WORDS = ["<pad>", "<eos>", "say", "yes", "no", "maybe", "never", "often", "soon", "later"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def mean_rewards(control: str, steps: int) -> list[float]:
    """Train from the same start under a control and return the mean reward of each step."""
    trl = import_trl()
    set_seed(0)
    rows = [{"prompt": "say", "chosen": "yes yes soon soon", "rejected": "no never no never"}] * 64
    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(
            **config_kwargs(
                output_dir=folder,
                max_steps=steps,
                learning_rate=5e-3,
                per_device_train_batch_size=64,
                num_generations=8,
                max_completion_length=8,
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                logging_steps=1,
                report_to=[],
                disable_tqdm=True,
            )
        )
        trainer = trl.GRPOTrainer(
            model=prepare_model(make_model()),
            reward_funcs=apply_reward_control([preference_overlap], control),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=make_tokenizer(),
        )
        trainer.train()
    return [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]


def main() -> None:
    parser = argparse.ArgumentParser(description="True against shuffled reward.")
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    for control in ("none", "shuffled"):
        rewards = mean_rewards(control, steps)
        tail = rewards[-5:]
        if os.environ.get("RANK", "0") == "0":
            print(f"control={control}: mean reward {rewards[0]:+.3f} -> {sum(tail) / len(tail):+.3f}", flush=True)


if __name__ == "__main__":
    main()

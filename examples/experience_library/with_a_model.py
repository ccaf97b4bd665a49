"""A library beside a model: training with a gradient first, then examples from the library in the prompt.

    python examples/experience_library/with_a_model.py

The Python form of the guide's few-shot generation and of its combination with gradient RL, on a word-level Llama of a few
thousand parameters that is made here. Needs no download and no GPU; about ten seconds on one core.
"""

import argparse
import tempfile
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from trl_grpo_ext import ExperienceCallback, ExperienceLibrary
from trl_grpo_ext.experience import few_shot_text
from trl_grpo_ext.gym import GRPOConfig, GRPOTrainer

WORDS = ["<pad>", "<eos>", "<unk>", "Q", "A", ":", "say", "yes", "no", "maybe", "often", "soon"]
PROMPTS = ["say yes", "say often"]
GROUP = 8


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
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
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def reward(query: str, response: str) -> float:
    """1 where the word that was asked for is said."""
    return float(query.split()[-1] in response.split())


def train_with_gradients(model: Any, tokenizer: Any, library: ExperienceLibrary, steps: int) -> None:
    """Phase 1: the weights learn, and the library keeps the rollouts that beat their group."""
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            group_size=GROUP,
            response_length=4,
            lr=5e-3,
            per_device_train_batch_size=4 * GROUP,
            max_steps=steps,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        callbacks = [ExperienceCallback(library, inject="none")]
        trainer = GRPOTrainer(model, config=config, reward_model=reward, tokenizer=tokenizer, callbacks=callbacks)
        trainer.train([{"prompt": prompt} for prompt in PROMPTS * 8])


def generate(model: Any, tokenizer: Any, prompt: str, count: int = 1) -> list[str]:
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        found = model.generate(**inputs, do_sample=True, max_new_tokens=4, num_return_sequences=count)
    return tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def generate_and_store(model: Any, tokenizer: Any, prompt: str, library: ExperienceLibrary) -> None:
    """Phase 2: the weights stay as they are, and the library goes on learning."""
    responses = [response or "-" for response in generate(model, tokenizer, prompt, GROUP)]
    rollouts = [(prompt, response) for response in responses]
    library.add_rollout_group(rollouts, [reward(prompt, response) for response in responses])


def generate_with_experience_library(
    model: Any, tokenizer: Any, prompt: str, library: ExperienceLibrary, examples: int
) -> str:
    """Answer with successful examples before the question."""
    shown = few_shot_text(library.sample_multiple(examples))
    return generate(model, tokenizer, f"{shown}\n\nQ: {prompt}\nA:")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="A library beside a model.")
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    set_seed(0)
    tokenizer, model, library = make_tokenizer(), make_model(), ExperienceLibrary(seed=0)
    train_with_gradients(model, tokenizer, library, steps)
    print(f"after training: {library.library_size()} episodes")
    model.eval()
    for prompt in ("say soon", "say maybe"):
        generate_and_store(model, tokenizer, prompt, library)
    print(f"after new tasks: {library.library_size()} episodes")
    print(f"answer: {generate_with_experience_library(model, tokenizer, 'say often', library, examples=3)!r}")


if __name__ == "__main__":
    main()

"""GRPO on GSM8K for `accelerate launch` and torchrun, on TRL alone: multi-GPU, FSDP2, ZeRO-2, ZeRO-3.

    accelerate launch --config_file examples/accelerate/zero3.yaml examples/accelerate/grpo.py --model Qwen/Qwen3-4B --data train.jsonl
    torchrun --nproc_per_node 2 examples/accelerate/grpo.py --model Qwen/Qwen3-0.6B --data train.jsonl

train.jsonl: one {"question": ..., "answer": "... #### 18"} per line, as in github.com/openai/grade-school-math.
Every process takes `--num-generations` completions per step: one prompt each.
"""

import argparse
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer

from trl_grpo_ext import ExtendedGRPOConfig, ExtendedGRPOTrainer, config_kwargs, gsm8k_number

INSTRUCTION = "Solve the problem. End with '#### ' and the number."


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="GRPO on GSM8K with ExtendedGRPOTrainer, on several processes.")
    parser.add_argument("--model", required=True, help="name or folder of a causal language model")
    parser.add_argument("--data", required=True, help="JSONL file with the fields question and answer")
    parser.add_argument("--output", default="grpo-gsm8k", help="where the trained model goes")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--num-generations", type=int, default=8, help="completions per question")
    parser.add_argument("--max-completion-length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--save-steps", type=int, default=50)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    return parser.parse_args()


def load_rows(path: str, conversational: bool) -> Dataset:
    """One row per question: the prompt, as messages when the tokenizer has a chat template, and the solution."""

    def to_row(example: dict[str, Any]) -> dict[str, Any]:
        text = f"{INSTRUCTION}\n\n{example['question']}"
        prompt = [{"role": "user", "content": text}] if conversational else f"{text}\n"
        return {"prompt": prompt, "solution": example["answer"]}

    rows = load_dataset("json", data_files=path, split="train")
    return rows.map(to_row, remove_columns=rows.column_names)


def main() -> None:
    arguments = parse_arguments()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    with PartialState().local_main_process_first():
        rows = load_rows(arguments.data, conversational=tokenizer.chat_template is not None)
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    # The config comes first and the model is named, not loaded here: under ZeRO-3 it is then loaded in shards.
    config = ExtendedGRPOConfig(
        **config_kwargs(
            output_dir=arguments.output,
            max_steps=arguments.steps,
            learning_rate=arguments.learning_rate,
            per_device_train_batch_size=arguments.num_generations,
            num_generations=arguments.num_generations,
            max_completion_length=arguments.max_completion_length,
            model_init_kwargs={"dtype": "bfloat16" if bf16 else "float32"},
            use_cpu=not torch.cuda.is_available(),
            bf16=bf16,
            logging_steps=1,
            save_steps=arguments.save_steps,
            report_to=[],
        )
    )
    trainer = ExtendedGRPOTrainer(
        model=arguments.model, reward_funcs=[gsm8k_number], args=config, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train(resume_from_checkpoint=arguments.resume)
    trainer.save_model(arguments.output)
    if trainer.accelerator.is_main_process:
        print(f"{trainer.accelerator.num_processes} processes, {trainer.state.global_step} steps")


if __name__ == "__main__":
    main()

"""GRPO on GSM8K with TRL's own GRPOTrainer and the reward `gsm8k_number`.

    python examples/trl/grpo_gsm8k.py --model Qwen/Qwen3-0.6B --data train.jsonl
    accelerate launch --num_processes 2 examples/trl/grpo_gsm8k.py --model Qwen/Qwen3-0.6B --data train.jsonl
    torchrun --nproc_per_node 2 examples/trl/grpo_gsm8k.py --model Qwen/Qwen3-0.6B --data train.jsonl

train.jsonl: one {"question": ..., "answer": "... #### 18"} per line, as in github.com/openai/grade-school-math.
One process per GPU; without a GPU it trains on the CPU, for small models only (several CPU processes: torchrun).
"""

import argparse
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_grpo_ext import check_reward_columns, config_kwargs, gsm8k_number, import_trl, prepare_model

INSTRUCTION = "Solve the problem. End with '#### ' and the number."


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="GRPO on GSM8K with TRL's GRPOTrainer.")
    parser.add_argument("--model", required=True, help="name or folder of a causal language model")
    parser.add_argument("--data", required=True, help="JSONL file with the fields question and answer")
    parser.add_argument("--output", default="grpo-gsm8k", help="where the trained model goes")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--num-generations", type=int, default=8, help="completions per question")
    parser.add_argument("--max-completion-length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1e-6)
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
    trl = import_trl()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16 if bf16 else torch.float32)
    rows = load_rows(arguments.data, conversational=tokenizer.chat_template is not None)
    check_reward_columns(gsm8k_number, rows.column_names)

    config = trl.GRPOConfig(
        **config_kwargs(
            output_dir=arguments.output,
            max_steps=arguments.steps,
            learning_rate=arguments.learning_rate,
            per_device_train_batch_size=arguments.num_generations,
            num_generations=arguments.num_generations,
            max_completion_length=arguments.max_completion_length,
            use_cpu=not torch.cuda.is_available(),
            bf16=bf16,
            logging_steps=1,
            report_to=[],
        )
    )
    trainer = trl.GRPOTrainer(
        model=prepare_model(model),
        reward_funcs=[gsm8k_number],
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(arguments.output)


if __name__ == "__main__":
    main()

"""Exact-match accuracy of a model folder on the 1,000 held-out problems: greedy, and sampled at temperature 1.

python examples/quickstart/evaluate.py quickstart/grpo
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from task import MAX_NEW_TOKENS, problems
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

logging.disable_progress_bar()

BATCH = 500
# The policy's own distribution, without truncation: what GRPO samples from.
SAMPLING = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
}


@torch.no_grad()
def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[str], mode: str = "greedy"
) -> list[str]:
    """One completion per question, prompted through the tokenizer's chat template."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        for question in questions
    ]
    answers: list[str] = []
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        # Left padding whatever the saved tokenizer says: LLaMA-Factory saves the side it trained with.
        inputs = tokenizer(batch, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **SAMPLING[mode])
        answers += tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def evaluate(
    folder: Path, rows: Sequence[Mapping[str, str]] | None = None, modes: Iterable[str] = SAMPLING, seed: int = 0
) -> dict[str, float]:
    """Share of right answers of the model in `folder`, per mode, on `rows` (default: the held-out problems)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = problems()[1] if rows is None else rows
    questions = [row["instruction"] for row in rows]
    result = {}
    for mode in modes:
        torch.manual_seed(seed)
        answers = complete(model, tokenizer, questions, mode)
        result[mode] = sum(a == row["output"] for a, row in zip(answers, rows, strict=True)) / len(rows)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model folder, for example quickstart/grpo")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampled accuracy")
    arguments = parser.parse_args()
    print(json.dumps(evaluate(arguments.model, seed=arguments.seed)))

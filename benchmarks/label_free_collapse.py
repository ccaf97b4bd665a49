"""Does a label-free reward collapse, and do the composite's checks and the guard prevent it? A toy, in a minute.

Task: prompts `ab` of two digits, right answer (a + b) mod 10, one token. The start policy, made here, is right in 55 %
of samples on a quarter of the prompts; on the others its most frequent answer is the constant 0 (50 %), the right one
coming second (30 %): the situation in which majority voting learns a constant, consistent, wrong answer (SRT, arXiv
2505.21444). No reward but the guard's canaries sees a label: 12 of the 100 prompts, never trained on.

Arms, from the same start policy on the stock GRPOTrainer:
    majority            plain majority vote, no check (the baseline)
    majority+guard      the same under `CollapseGuard(policy="stop")`
    composite           `label_free_reward()`: margins, agreement limits, cross-prompt mode check
    composite+guard     the same under the guard

`accuracy` is the exact probability of the right answer, mean over the 88 training prompts; `constant` that of 0 where it
is wrong. A run counts as collapsed if its accuracy ends 0.05 or more below its start, whatever it fell into.
What to expect: the composite is what prevents the collapse. The guard alone comes too late for plain majority vote
here (the run is over within some 30 steps), and with 12 canaries it also stops some healthy runs early.

    python benchmarks/label_free_collapse.py [--quick] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback

from trl_grpo_ext import config_kwargs, exact_match, import_trl, prepare_model
from trl_grpo_ext.rewards.label_free import CollapseGuard, SelfConsistencyReward, label_free_reward

ARMS = ("majority", "majority+guard", "composite", "composite+guard")
PROMPTS = [f"{a}{b}" for a in range(10) for b in range(10)]
ANSWERS = {prompt: sum(map(int, prompt)) % 10 for prompt in PROMPTS}
CANARIES, GROUP, BATCH = 12, 8, 128
COLLAPSE = 0.05
LEARNING_RATE = 3e-4


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per digit."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *"0123456789"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model(seed: int) -> LlamaForCausalLM:
    """A Llama of two layers, 64 wide."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=12,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    )


def start_distribution(easy: set[str]) -> torch.Tensor:
    """The answers of the start policy per prompt, over the vocabulary."""
    rows = torch.zeros(len(PROMPTS), 12)
    for row, prompt in enumerate(PROMPTS):
        right = ANSWERS[prompt]
        constant, own = (0.05, 0.55) if prompt in easy else (0.5, 0.3)
        rows[row, 2:] = (1 - constant - own) / 8
        rows[row, 2] = constant
        rows[row, 2 + right] = max(own, constant) if right == 0 else own
    return rows / rows.sum(dim=1, keepdim=True)


def answer_probabilities(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """The distribution over the vocabulary after each prompt."""
    tokens = tokenizer(PROMPTS, return_tensors="pt")
    device = next(model.parameters()).device
    return model(**tokens.to(device)).logits[:, -1].softmax(dim=-1)


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, target: torch.Tensor, steps: int) -> None:
    """Fit the start distribution."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = -(target * answer_probabilities(model, tokenizer).clamp_min(1e-9).log()).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> dict[str, float]:
    """Mean probability of the right answer, and of 0 where it is wrong."""
    rows = answer_probabilities(model, tokenizer)
    right = [rows[PROMPTS.index(prompt), 2 + ANSWERS[prompt]].item() for prompt in prompts]
    constant = [rows[PROMPTS.index(prompt), 2].item() for prompt in prompts if ANSWERS[prompt] != 0]
    return {"accuracy": fmean(right), "constant": fmean(constant)}


def make_reward(arm: str) -> CollapseGuard:
    """The arm's reward. The arms without guard have one that only warns, for the same measurements."""
    plain = SelfConsistencyReward(min_agreement=0.0, max_agreement=1.0, mode_window=0, group_size=GROUP)
    reward = plain if arm.startswith("majority") else label_free_reward(group_size=GROUP)
    return CollapseGuard(
        reward,
        exact_match,
        policy="stop" if arm.endswith("+guard") else "warn",
        window=15,
        min_drop=0.1,
        patience=3,
        name="guarded",
    )


def train(arm: str, seed: int, steps: int, pretrain_steps: int) -> dict[str, Any]:
    """One run of one arm, and its figures before and after."""
    trl, tokenizer, model = import_trl(), make_tokenizer(), make_model(seed)
    order = random.Random(seed).sample(PROMPTS, len(PROMPTS))
    easy, canaries = set(order[: len(order) // 4]), set(random.Random(seed + 100).sample(PROMPTS, CANARIES))
    taught = [prompt for prompt in PROMPTS if prompt not in canaries]
    pretrain(model, tokenizer, start_distribution(easy), pretrain_steps)
    start = measure(model, tokenizer, taught)
    guard = make_reward(arm)
    rows = [{"prompt": p, "solution": str(ANSWERS[p]), "canary": p in canaries} for p in order]
    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(
            **config_kwargs(
                output_dir=folder,
                max_steps=steps,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                per_device_train_batch_size=BATCH,
                num_generations=GROUP,
                max_completion_length=1,
                beta=0.0,
                seed=seed,
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                logging_steps=1,
                report_to=[],
                disable_tqdm=True,
            )
        )
        trainer = trl.GRPOTrainer(
            model=prepare_model(model),
            reward_funcs=[guard],
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[guard.callback()],
        )
        # One line per logged step would bury the table.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    end = measure(model, tokenizer, taught)
    pseudo = [
        entry["guarded/pseudo_reward"] for entry in trainer.state.log_history if "guarded/pseudo_reward" in entry
    ]
    collapsed = end["accuracy"] <= start["accuracy"] - COLLAPSE
    return {
        "arm": arm,
        "seed": seed,
        "steps": trainer.state.global_step,
        "accuracy_start": start["accuracy"],
        "accuracy_end": end["accuracy"],
        "constant_start": start["constant"],
        "constant_end": end["constant"],
        "agreement_start": fmean(pseudo[:5]),
        "agreement_end": fmean(pseudo[-5:]),
        "guard_alarm": guard.collapsed,
        "collapsed": collapsed,
    }


def goals(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the benchmark must show."""

    def share(arm: str) -> float:
        return fmean(result["collapsed"] for result in results if result["arm"] == arm)

    return [
        {"name": "plain majority vote collapses (share of seeds)", "goal": 1.0, "value": share("majority")},
        {"name": "composite with guard collapses (share of seeds)", "goal": 0.0, "value": share("composite+guard")},
    ]


def report(results: list[dict[str, Any]], seeds: int) -> None:
    """Print one line per run and one per arm."""
    print(f"{'arm':<18}{'seed':>5}{'steps':>7}{'accuracy':>16}{'constant':>16}{'agreement':>16}  collapsed")
    for r in results:
        pairs = [
            f"{r[f'{name}_start']:.3f} -> {r[f'{name}_end']:.3f}" for name in ("accuracy", "constant", "agreement")
        ]
        print(
            f"{r['arm']:<18}{r['seed']:>5}{r['steps']:>7}" + "".join(f"{p:>16}" for p in pairs) + f"  {r['collapsed']}"
        )
    for arm in ARMS:
        own = [r for r in results if r["arm"] == arm]
        print(
            f"{arm}: collapsed in {sum(r['collapsed'] for r in own)} of {seeds} seeds, "
            f"accuracy {fmean(r['accuracy_start'] for r in own):.3f} -> {fmean(r['accuracy_end'] for r in own):.3f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and fewer steps")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # TRL warns at each step about rows without a reward, which are the point here.
    logging.getLogger("trl").setLevel(logging.ERROR)
    seeds, steps = (1, 100) if options.quick else (3, 200)
    results = [train(arm, seed, steps, pretrain_steps=500) for seed in range(seeds) for arm in ARMS]
    report(results, seeds)
    reached = [{**goal, "met": goal["value"] == goal["goal"]} for goal in goals(results)]
    for goal in reached:
        print(f"{goal['name']}: {goal['value']:.2f}, goal {goal['goal']:.2f}: {'met' if goal['met'] else 'NOT MET'}")
    if options.json:
        environment = {"python": platform.python_version(), "torch": torch.__version__}
        document = {"name": "label_free_collapse", "environment": environment, "results": results, "goals": reached}
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0 if all(goal["met"] for goal in reached) else 1


if __name__ == "__main__":
    raise SystemExit(main())

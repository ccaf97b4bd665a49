"""Does rescue learn where GRPO's gradient is exactly zero? A toy task, in a few minutes.

Task: "what is d", right answer four times (d + 2) mod 5, four tokens. The start policy, made here, says d: every other
digit has a probability of 0.02 at every token, so that the right answer has 1.6e-7: every rollout of every prompt has
reward 0, and every group is dead. It was also taught to follow a hint: with the lesson "shift s" in the prompt, as the
library writes it, it says (d + s) mod 5 at 19 of 20 tokens, and else d, for s from 0 to 4. The library of the rescue
arms holds the lesson "shift 2", that of the controls "shift 3".

Arms, from the same start policy:
    grpo                    TRL's GRPOTrainer (the baseline)
    off_policy shape        hinted completions learned with the plain prompt, LUFFY's weight
    off_policy clip         the same under PPO's clipped ratio, TRL's own loss
    on_policy_hinted        the hint stays in the prompt of the loss
    on_policy annealed      the same, no hints any more after half of the training
    wrong hint, off_policy  control of `off_policy shape`
    wrong hint, on_policy   control of `on_policy_hinted`

`plain` is the exact probability of the right answer without any hint, mean over the prompts, before and after: what is
in the weights. `hinted` is that with the right hint. `solved` counts un-hinted training rollouts with a reward above 0,
`gradient` is the largest gradient norm of the run, `moved` the largest change of a parameter.

    python benchmarks/rescue.py [--quick] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets import Dataset
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback

from trl_grpo_ext import (
    ExtendedGRPOConfig,
    ExtendedGRPOTrainer,
    RescueCallback,
    config_kwargs,
    import_trl,
    prepare_model,
)
from trl_grpo_ext.experience import ExperienceLibrary, Lesson, lessons_text
from trl_grpo_ext.experience.injection import inject

MODULUS, SHIFT, WRONG, LENGTH = 5, 2, 3, 4
# Probability of a token that the start policy gives to each digit that it does not know, and to d in spite of a hint.
UNLIKELY, UNHEEDED = 0.02, 0.05
GROUP, REROLLS, LEARNING_RATE = 8, 2, 3e-4
POSITION = "prefix"
# Token ids: <pad>, <eos>, then the digits.
FIRST_DIGIT = 2
PROMPTS = [f"what is {digit}" for digit in range(MODULUS)]
ARMS: dict[str, dict[str, Any] | None] = {
    "grpo": None,
    "off_policy shape": {"mode": "off_policy", "correction": "shape"},
    "off_policy clip": {"mode": "off_policy", "correction": "clip"},
    "on_policy_hinted": {"mode": "on_policy_hinted"},
    "on_policy annealed": {"mode": "on_policy_hinted", "anneal": 0.5},
    "wrong hint, off_policy": {"mode": "off_policy", "correction": "shape", "shift": WRONG},
    "wrong hint, on_policy": {"mode": "on_policy_hinted", "shift": WRONG},
}


def lesson(shift: int) -> Lesson:
    """The lesson that names a shift."""
    return Lesson(f"shift {shift}", timestamp=0.0)


def hinted(prompt: str, shift: int) -> str:
    """The prompt with a lesson in it, as the callback writes it."""
    return str(inject(prompt, lessons_text([lesson(shift)]), POSITION))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the prompts and lessons."""
    words = dict.fromkeys(" ".join(hinted(prompt, shift) for prompt in PROMPTS for shift in range(MODULUS)).split())
    digits = [str(digit) for digit in range(MODULUS)]
    vocabulary = ["<pad>", "<eos>", *digits, *(word for word in words if word not in digits)]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model(vocabulary: int, seed: int) -> LlamaForCausalLM:
    """A Llama of three layers, 128 wide: in a smaller one, learning one prompt unlearns to follow the others' hints."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=64, **sizes, **ids))


def answer(prompt: str, shift: int) -> int:
    """The answer under a shift."""
    return (int(prompt[-1]) + shift) % MODULUS


def log_probabilities(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], answers: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities of the digits at each token of the answers, over the whole vocabulary.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        prompts: B of them.
        answers: (B, LENGTH), digits; each token is given those before it.

    Returns:
        (B, LENGTH, MODULUS).
    """
    tokens = tokenizer(prompts, padding=True, return_tensors="pt")
    before = answers[:, :-1] + FIRST_DIGIT
    ids = torch.cat([tokens["input_ids"], before], dim=1)
    mask = torch.cat([tokens["attention_mask"], torch.ones_like(before)], dim=1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -LENGTH:]
    return logits.log_softmax(-1)[..., FIRST_DIGIT : FIRST_DIGIT + MODULUS]


def target(prompts: list[str], shift: int, unheeded: float) -> torch.Tensor:
    """What the start policy says at each token: under the shift, or with `unheeded` the digit itself."""
    rows, every = torch.full((len(prompts), MODULUS), UNLIKELY), torch.arange(len(prompts))
    likely = 1 - UNLIKELY * (MODULUS - 1)
    rows[every, [answer(prompt, shift) for prompt in prompts]] = likely - unheeded
    rows[every, [answer(prompt, 0) for prompt in prompts]] = unheeded if shift else likely
    return rows / rows.sum(1, keepdim=True)


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    """Teach the start policy: d without a hint, (d + s) mod 5 with one, whatever the tokens before."""
    texts = [*PROMPTS, *(hinted(prompt, shift) for shift in range(MODULUS) for prompt in PROMPTS)]
    wanted = torch.cat([target(PROMPTS, 0, 0.0), *(target(PROMPTS, shift, UNHEEDED) for shift in range(MODULUS))])
    # The five prompts without a hint weigh as much as the others together.
    weights = torch.cat([torch.full((MODULUS,), 0.1), torch.full((MODULUS**2,), 0.02)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        # Every other time one digit throughout, as the answers are; else any digits.
        answers = torch.randint(MODULUS, (len(texts), LENGTH if step % 2 else 1)).expand(-1, LENGTH)
        found = log_probabilities(model, tokenizer, texts, answers)
        loss = -(weights * (wanted[:, None] * found).sum(-1).mean(1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Exact probability of the right answer, mean over the prompts, without and with the right hint."""
    right = torch.tensor([answer(prompt, SHIFT) for prompt in PROMPTS])[:, None].expand(-1, LENGTH)
    both = {"plain": PROMPTS, "hinted": [hinted(prompt, SHIFT) for prompt in PROMPTS]}
    return {
        name: log_probabilities(model, tokenizer, texts, right)
        .gather(2, right[..., None])
        .sum((1, 2))
        .exp()
        .mean()
        .item()
        for name, texts in both.items()
    }


def solves(completions: list[str], solution: list[str], **kwargs: Any) -> list[float]:
    """Reward 1 for the right answer, all of it."""
    return [float(text.split() == [right] * LENGTH) for text, right in zip(completions, solution, strict=True)]


def make_trainer(arm: str, model: LlamaForCausalLM, folder: str, seed: int, steps: int) -> Any:
    """The trainer of an arm."""
    rescue, trl = ARMS[arm], import_trl()
    config_class, trainer_class = (
        (trl.GRPOConfig, trl.GRPOTrainer) if rescue is None else (ExtendedGRPOConfig, ExtendedGRPOTrainer)
    )
    settings: dict[str, Any] = config_kwargs(
        output_dir=folder,
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        per_device_train_batch_size=len(PROMPTS) * GROUP,
        num_generations=GROUP,
        max_completion_length=LENGTH,
        beta=0.0,
        seed=seed,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
    )
    callbacks = []
    if rescue is not None:
        rescue = dict(rescue)
        library = ExperienceLibrary()
        library.add(lesson(rescue.pop("shift", SHIFT)))
        settings["off_policy_correction"] = rescue.pop("correction", "clip")
        callbacks.append(RescueCallback(library, visits=1, rerolls=REROLLS, position=POSITION, **rescue))
    rows = [{"prompt": prompt, "solution": str(answer(prompt, SHIFT))} for prompt in PROMPTS]
    return trainer_class(
        model=prepare_model(model),
        reward_funcs=[solves],
        args=config_class(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(),
        callbacks=callbacks,
    )


def train(arm: str, start: LlamaForCausalLM, seed: int, steps: int) -> dict[str, Any]:
    """One run of one arm, and its figures before and after."""
    tokenizer, model = make_tokenizer(), LlamaForCausalLM(start.config)
    model.load_state_dict(start.state_dict())
    before = measure(model, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(arm, model, folder, seed, steps)
        # One line per logged step would bury the table.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    after, history = measure(model, tokenizer), trainer.state.log_history
    rewards = [entry["reward"] for entry in history if "reward" in entry]
    parameters, started = dict(model.named_parameters()), dict(start.named_parameters())
    return {
        "arm": arm,
        "seed": seed,
        "plain_start": before["plain"],
        "plain_end": after["plain"],
        "hinted_start": before["hinted"],
        "hinted_end": after["hinted"],
        "solved": round(sum(rewards) * len(PROMPTS) * GROUP),
        "gradient": max(entry["grad_norm"] for entry in history if "grad_norm" in entry),
        "moved": max((parameters[name] - started[name]).abs().max().item() for name in started),
    }


def goals(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the benchmark must show."""

    def values(name: str, *arms: str) -> list[float]:
        return [result[name] for result in results if result["arm"] in arms]

    wrong = [arm for arm in ARMS if arm.startswith("wrong")]
    rows = [
        ("grpo: largest gradient norm", "==", 0.0, max(values("gradient", "grpo"))),
        ("grpo: largest change of a parameter", "==", 0.0, max(values("moved", "grpo"))),
        ("off_policy shape: plain, least of the seeds", ">=", 0.9, min(values("plain_end", "off_policy shape"))),
        ("wrong hints: plain, most of the seeds", "<=", 0.01, max(values("plain_end", *wrong))),
    ]
    met = {"==": float.__eq__, ">=": float.__ge__, "<=": float.__le__}
    return [
        {"name": name, "goal": f"{sign} {goal:g}", "value": value, "met": met[sign](value, goal)}
        for name, sign, goal, value in rows
    ]


def report(results: list[dict[str, Any]]) -> None:
    """Print one line per run and one per arm."""
    print(f"{'arm':<24}{'seed':>4}{'plain':>22}{'hinted':>18}{'solved':>8}{'gradient':>11}{'moved':>11}")
    for r in results:
        plain, with_hint = f"{r['plain_start']:.1e} -> {r['plain_end']:.3f}", f"{r['hinted_start']:.3f} -> "
        print(
            f"{r['arm']:<24}{r['seed']:>4}{plain:>22}{with_hint + format(r['hinted_end'], '.3f'):>18}"
            f"{r['solved']:>8}{r['gradient']:>11.2e}{r['moved']:>11.2e}"
        )
    for arm in ARMS:
        own = [r for r in results if r["arm"] == arm]
        print(f"{arm}: plain {fmean(r['plain_start'] for r in own):.1e} -> {fmean(r['plain_end'] for r in own):.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("trl").setLevel(logging.ERROR)
    seeds, steps, results = (1, 300, []) if options.quick else (3, 300, [])
    for seed in range(seeds):
        tokenizer = make_tokenizer()
        start = make_model(len(tokenizer), seed)
        pretrain(start, tokenizer, steps=600)
        results += [train(arm, start, seed, steps) for arm in ARMS]
    report(results)
    reached = goals(results)
    for goal in reached:
        print(f"{goal['name']}: {goal['value']:.4g}, goal {goal['goal']}: {'met' if goal['met'] else 'NOT MET'}")
    if options.json:
        environment = {"python": platform.python_version(), "torch": torch.__version__}
        document = {"name": "rescue", "environment": environment, "results": results, "goals": reached}
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0 if all(goal["met"] for goal in reached) else 1


if __name__ == "__main__":
    raise SystemExit(main())

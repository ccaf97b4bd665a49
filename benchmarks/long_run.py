"""Whether a long GRPO run keeps its size: memory, open files, processes, threads and the experience store over 2,000 steps.

A tiny Llama with random weights learns to say vowels, with `ExtendedGRPOTrainer`: rewards in a worker process, a
store of at most 1,000 experiences and a history of twice as many operations, dynamic sampling, a checkpoint with the
library every 100 steps, three of them kept.
Measured every 50 steps, on the main process. Baseline: the same run at a quarter of its steps, where everything that
is made once is made. Goals: what stands at the end against that. Steps that are measured more than once vary with the
allocator, so memory may grow by 5 %; open files, processes and threads not at all.

    python benchmarks/long_run.py [--quick] [--json PATH]      --quick: 200 steps
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # before torch is imported
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import json
import platform
import string
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from trl_grpo_ext import ExperienceCallback, ExtendedGRPOConfig, ExtendedGRPOTrainer, import_trl, prepare_model
from trl_grpo_ext.experience import ExperienceConfig, ExperienceLibrary
from trl_grpo_ext.health import HealthCallback
from trl_grpo_ext.rewards.runtime import IsolatedReward

STEPS, QUICK, EVERY, SAVE = 2000, 200, 50, 100
# May grow by this share from a quarter of the run to its end.
GROWTH = {"rss_mib": 0.05, "open_files": 0.0, "processes": 0.0, "threads": 0.0, "store_records": 0.0, "disk_mib": 0.5}


def measure(folder: Path, library: ExperienceLibrary) -> dict[str, float]:
    """What this process and its children hold now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {
        "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
        "open_files": len(os.listdir("/proc/self/fd")),
        "processes": len(children(os.getpid())),
        "threads": int(status["Threads"]),
        "store_records": len(library),
        "store_mib": (folder / "experiences.db").stat().st_size / 2**20,
        "disk_mib": sum(files) / 2**20,
    }


def children(process: int) -> list[int]:
    """All processes below one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == process:
            found += [int(stat.parent.name), *children(int(stat.parent.name))]
    return found


class Gauge(TrainerCallback):
    """Measures and prints every `EVERY` steps."""

    def __init__(self, folder: Path, library: ExperienceLibrary) -> None:
        self.folder, self.library, self.rows = folder, library, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % EVERY:
            return
        row = {"step": state.global_step, **measure(self.folder, self.library)}
        self.rows.append(row)
        print("  ".join(f"{name} {value:.6g}" for name, value in row.items()), flush=True)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character."""
    words = {token: index for index, token in enumerate(["<pad>", "<eos>", *string.printable])}
    model = Tokenizer(WordLevel(words, unk_token="<pad>"))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
    ids = {"pad_token": "<pad>", "eos_token": "<eos>", "padding_side": "left"}
    return PreTrainedTokenizerFast(tokenizer_object=model, model_input_names=["input_ids", "attention_mask"], **ids)


def policy() -> LlamaForCausalLM:
    """A random model."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=2 + len(string.printable), **sizes, **ids))


def vowels(completions: list[str], **kwargs: Any) -> list[float]:
    """Share of vowels."""
    return [sum(text.lower().count(vowel) for vowel in "aeiou") / max(len(text), 1) for text in completions]


def train(folder: Path, steps: int) -> list[dict[str, float]]:
    """Return the measurements of a run."""
    import_trl()
    library = ExperienceLibrary(folder / "experiences.db", ExperienceConfig(max_library_size=1000))
    gauge = Gauge(folder, library)
    experiences = ExperienceCallback(library, inject="episodes", position="prefix", template=None, token_budget=60)
    config = ExtendedGRPOConfig(
        output_dir=str(folder / "run"), max_steps=steps, per_device_train_batch_size=8, num_generations=4,
        max_completion_length=6, learning_rate=1e-3, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True,
        logging_steps=EVERY, save_steps=SAVE, save_total_limit=3, dynamic_sampling_rounds=1,
    )  # fmt: skip
    prompts = [f"question {number}: " for number in range(400)]
    trainer = ExtendedGRPOTrainer(
        model=prepare_model(policy()), reward_funcs=[IsolatedReward(vowels)], args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}), processing_class=tokenizer(),
        callbacks=[experiences, HealthCallback(), gauge],
    )  # fmt: skip
    trainer.train()
    return gauge.rows


def goals(rows: list[dict[str, float]]) -> list[dict[str, Any]]:
    """What may not grow, from a quarter of the run on."""
    first, last = rows[max(len(rows) // 4 - 1, 0)], rows[-1]
    found = []
    for name, share in GROWTH.items():
        most = first[name] * (1 + share)
        found.append(
            {"name": f"{name} at the end", "goal": f"<= {most:.6g}", "value": last[name], "met": last[name] <= most}
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; return 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} steps")
    parser.add_argument("--json", type=Path, metavar="PATH", help="the figures' file")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = train(Path(folder), QUICK if options.quick else STEPS)
    found = goals(rows)
    for goal in found:
        print(f"{'met' if goal['met'] else 'MISSED'}: {goal['name']} {goal['value']:.6g} {goal['goal']}")
    environment = {"python": platform.python_version(), "torch": torch.__version__, "trl": import_trl().__version__}
    environment["seconds"] = round(time.monotonic() - begin, 1)
    if options.json:
        document = {"name": "long_run", "environment": environment, "results": rows, "goals": found}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all(goal["met"] for goal in found) else 1


if __name__ == "__main__":
    sys.exit(main())

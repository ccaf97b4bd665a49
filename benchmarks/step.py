"""The update of one micro-batch: stock GRPOTrainer against ours with every exact option of batching on.

Baseline: TRL's own `GRPOTrainer` on the same weights and the same micro-batch, alternately in one run; gradients are
compared beside the times. Measured, for a micro-batch of one group of G completions: CPU seconds (CUDA time on a GPU)
of loss forward, backward and optimizer, and the peak of live tensors above weights, gradients and the batch. `limit` is how much less arithmetic
the shared form does than the dense one: matrix products of the layers, of attention and of the head, counted from the
shapes, forward and backward. Generation and rewards are not measured here, because nothing here changes them.

    python benchmarks/step.py [--quick] [--model toy|half_billion] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
import warnings
import weakref
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from trl_grpo_ext import ExtendedGRPOConfig, ExtendedGRPOTrainer, import_trl, prepare_model

OURS = {"shared_prompt": True, "chunked_logps": True, "trim_padding": True, "keep_groups": True, "skip_entropy": True}
GRID = [(128, 128, 8), (128, 512, 8), (512, 128, 8), (1024, 128, 8), (1024, 256, 8), (2048, 512, 4)]
QUICK_GRID = [(64, 64, 4), (256, 64, 8)]
TOY = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}
MODELS = {
    "quick": TOY | {"num_key_value_heads": 4, "vocab_size": 4096, "num_hidden_layers": 2},
    "toy": TOY | {"num_key_value_heads": 4, "vocab_size": 32768},
    # The layers and the vocabulary of Qwen2.5-0.5B, two layers of them.
    "half_billion": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 2}
    | {"num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
}
CUDA = torch.cuda.is_available()


@dataclass
class Cost:
    """Seconds of each phase."""

    forward: float
    backward: float
    optimizer: float


def make_trainer(extended: bool, sizes: dict[str, Any], folder: str) -> Any:
    """A trainer of either class on the same random weights."""
    trl = import_trl()
    trainer_class, config_class = (
        (ExtendedGRPOTrainer, ExtendedGRPOConfig) if extended else (trl.GRPOTrainer, trl.GRPOConfig)
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, max_position_embeddings=4096, pad_token_id=0, eos_token_id=1))
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    settings = {"output_dir": folder, "per_device_train_batch_size": 8, "num_generations": 8, "report_to": []}
    settings |= {"gradient_checkpointing": False, "use_cpu": not CUDA, "bf16": CUDA, "loss_type": "grpo"}
    return trainer_class(
        model=prepare_model(model),
        reward_funcs=[lambda completions, **kwargs: [0.0] * len(completions)],
        args=config_class(**settings, **(OURS if extended else {})),
        train_dataset=Dataset.from_dict({"prompt": ["<eos>"] * 8}),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"),
    )


def micro_batch(prompt: int, completion: int, group: int, vocabulary: int, device: Any) -> dict[str, Any]:
    """One group with a spread of lengths: the longest completion has all its tokens, the shortest a quarter."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(completion, completion / 4, group).round().long()
    mask = (torch.arange(completion) < lengths[:, None]).long()
    batch = {
        "prompt_ids": torch.randint(2, vocabulary, (1, prompt), generator=generator).repeat(group, 1),
        "prompt_mask": torch.ones(group, prompt, dtype=torch.long),
        "completion_ids": torch.randint(2, vocabulary, (group, completion), generator=generator) * mask,
        "completion_mask": mask,
        "advantages": torch.randn(group, generator=generator),
        "num_items_in_batch": mask.sum(),
    }
    return {name: value.to(device) for name, value in batch.items()}


def flops(sizes: dict[str, Any], tokens: int, pairs: int, scored: int) -> float:
    """Multiply-adds, times 6 for forward and backward, of layers, attention and head."""
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    projections = width * width * (2 + 2 * sizes["num_key_value_heads"] / heads)
    layer = tokens * (projections + 3 * width * sizes["intermediate_size"]) + 2 * pairs * width
    return 6.0 * (sizes["num_hidden_layers"] * layer + scored * width * sizes["vocab_size"])


def limit(sizes: dict[str, Any], prompt: int, completion: int, group: int) -> float:
    """Arithmetic of the dense form over that of the shared form; every token pair that SDPA computes is counted."""
    length, scored = prompt + completion, group * completion
    dense = flops(sizes, group * length, group * length * length, group * (completion + 1))
    shared_pairs = prompt * prompt + group * completion * length
    return dense / flops(sizes, prompt + group * completion, shared_pairs, scored)


def now() -> float:
    """CPU seconds of this process, or wall seconds once the GPU is done."""
    if CUDA:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class LivePeak(TorchDispatchMode):
    """The most bytes of tensors made since it began that were alive at once; without what a kernel uses inside."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and watch over the storages of what it returns."""
        found = func(*args, **(kwargs or {}))
        held = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        for tensor in tree_leaves(found):
            if torch.is_tensor(tensor) and tensor.untyped_storage()._cdata not in held | self.live.keys():
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return found


def peak_bytes(trainer: Any, batch: dict[str, Any]) -> int:
    """Peak memory of forward and backward above weights, gradients and the batch."""
    trainer.model.train()
    if not CUDA:
        with LivePeak() as watched:
            trainer.compute_loss(trainer.model, batch).backward()
        return watched.peak
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer.compute_loss(trainer.model, batch).backward()
    return torch.cuda.max_memory_allocated() - before


def measure(trainer: Any, batch: dict[str, Any], optimizer: Any) -> Cost:
    """One update; its gradients stay where they are."""
    optimizer.zero_grad(set_to_none=False)
    times = [now()]
    loss = trainer.compute_loss(trainer.model, batch)
    times.append(now())
    loss.backward()
    times.append(now())
    optimizer.step()
    times.append(now())
    return Cost(*(later - earlier for earlier, later in pairwise(times)))


def difference(trainers: list[Any]) -> float:
    """Largest difference of a gradient, relative to the largest gradient."""
    both = [[value.grad for value in trainer.model.parameters() if value.grad is not None] for trainer in trainers]
    largest = max(value.abs().max().item() for value in both[0])
    return max((one - other).abs().max().item() for one, other in zip(*both, strict=True)) / largest


def compare(sizes: dict[str, Any], point: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    """Stock and ours by turns on one point of the grid; medians."""
    costs: list[list[Cost]] = [[], []]
    with tempfile.TemporaryDirectory() as folder:
        trainers = [make_trainer(extended, sizes, folder) for extended in (False, True)]
        batch = micro_batch(*point, sizes["vocab_size"], trainers[0].accelerator.device)
        # A learning rate of 0 keeps both on the same weights.
        optimizers = [torch.optim.AdamW(one.model.parameters(), lr=0.0, weight_decay=0.0) for one in trainers]
        for trainer in trainers:
            trainer.current_gradient_accumulation_steps = 1
        # The first pass, with the check of the first micro-batch, and the one whose memory is watched are not timed.
        for trainer in trainers:
            trainer.model.train()
            trainer.compute_loss(trainer.model, batch).backward()
        peaks = [peak_bytes(trainer, batch) for trainer in trainers]
        for _ in range(repeats):
            for trainer, optimizer, seen in zip(trainers, optimizers, costs, strict=True):
                seen.append(measure(trainer, batch, optimizer))
        apart = difference(trainers)
    stock, ours = (
        {name: statistics.median(asdict(c)[name] for c in seen) for name in asdict(seen[0])} for seen in costs
    )
    updates = [one["forward"] + one["backward"] for one in (stock, ours)]
    bound = limit(sizes, *point)
    return {
        **dict(zip(("prompt", "completion", "group"), point, strict=True)),
        **{
            "stock": stock | {"peak_bytes": peaks[0]},
            "ours": ours | {"peak_bytes": peaks[1]},
            "speedup": updates[0] / updates[1],
            "limit": bound,
        },
        **{"share_of_limit": updates[0] / updates[1] / bound, "memory_ratio": peaks[1] / peaks[0]},
        "gradient_difference": apart,
    }


def goals(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the issue that this benchmark measures; those whose grid point was not run are left out."""
    at = {(one["prompt"], one["completion"], one["group"]): one for one in results}
    found = [
        ("gradients equal (relative)", 1e-5 if not CUDA else 0.1, max(one["gradient_difference"] for one in results))
    ]
    found = [{"name": name, "goal": goal, "value": value, "met": value <= goal} for name, goal, value in found]
    least = min(one["share_of_limit"] for one in results)
    found.append({"name": "least share of the FLOP limit", "goal": 0.9, "value": least, "met": least >= 0.9})
    if long := at.get((1024, 128, 8)):
        ratio = long["memory_ratio"]
        found.append({"name": "memory at (1024,128,8)", "goal": 0.4, "value": ratio, "met": ratio <= 0.4})
    if short := at.get((128, 512, 8)):
        speed = short["speedup"]
        found.append({"name": "speed at (128,512,8)", "goal": 0.97, "value": speed, "met": speed >= 0.97})
    return found


def main() -> int:
    """Run the grid, print a table, and write the file; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and grid, under two minutes")
    parser.add_argument("--model", choices=["toy", "half_billion"], default="toy", help="not read with --quick")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", message=".*is not used for")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    name = "quick" if args.quick else args.model
    print("    P     C   G   stock s   ours s  speed-up  limit  share  memory  gradients")
    results = []
    for point in QUICK_GRID if args.quick else GRID:
        one = compare(MODELS[name], point, args.repeats)
        results.append({"model": name} | one)
        seconds = [one[arm]["forward"] + one[arm]["backward"] for arm in ("stock", "ours")]
        print(
            f"{point[0]:5} {point[1]:5} {point[2]:3} {seconds[0]:9.3f} {seconds[1]:8.3f} {one['speedup']:9.2f} "
            f"{one['limit']:6.2f} {one['share_of_limit']:6.2f} {one['memory_ratio']:7.2f} "
            f"{one['gradient_difference']:10.1e}",
            flush=True,
        )
    reached = goals(results)
    for goal in reached:
        print(f"{goal['name']}: {goal['value']:.3g} (goal {goal['goal']}): {'met' if goal['met'] else 'NOT met'}")
    if args.json:
        names = ("torch", "transformers", "trl")
        environment = {"python": sys.version.split()[0], "machine": platform.machine()}
        environment |= {name: version(name) for name in names} | {"device": "cuda" if CUDA else "cpu, 1 thread"}
        document = {"name": "step", "environment": environment, "results": results, "goals": reached}
        args.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0 if all(goal["met"] for goal in reached) else 1


if __name__ == "__main__":
    sys.exit(main())

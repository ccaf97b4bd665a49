"""The same training on any number of ranks: sixteen rows a step, however many ranks share them.

Run by torchrun, or in a process of its own on one rank. Completions are a function of the prompt, the row's place in
the world's batch and the number of the call, so that every number of ranks samples the same ones.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from random import Random
from typing import Any

import torch
from datasets import Dataset

from tests.conformance.runs import CHARACTERS, extended, parameters, rows
from tests.distributed.resume_runs import CLOCK
from tests.experience.callback_runs import contents, lessons_library
from trl_grpo_ext import ExperienceCallback, RescueCallback
from trl_grpo_ext.bitdelta import BitDeltaCallback, BitDeltaConfig
from trl_grpo_ext.rewards.label_free import CollapseGuard
from trl_grpo_ext.rewards.runtime import IsolatedReward

ROWS, LENGTH = 16, 5
# Means over ranks of means over a rank's tokens, which are not the mean over all tokens; and the tokens sampled, where
# the groups that are sampled again are filled up until all ranks have the same number of rows.
PER_RANK = (*CLOCK, "entropy", "clip_ratio", "ratio/", "grad_norm", "loss", "kl", "num_tokens")


def ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def same_completions(trainer: Any) -> None:
    """Let the model say what does not depend on the number of ranks."""
    calls, rank = [0], trainer.accelerator.process_index

    def said(prompt: list[int], place: int) -> list[int]:
        random = Random(repr((prompt, place, calls[0])))
        length = random.randint(1, LENGTH)
        return [random.randrange(2, 2 + len(CHARACTERS)) for _ in range(length)] + [1] + [0] * (LENGTH - length)

    def generate(input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        calls[0] += 1
        first = rank * len(input_ids)
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        completions = [said(prompt, first + row)[:LENGTH] for row, prompt in enumerate(prompts)]
        return torch.cat([input_ids, torch.tensor(completions, device=input_ids.device)], dim=1)

    trainer.model.generate = generate


def by_prompt(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """Groups of some prompts seldom have something to compare."""
    pairs = zip(prompts, completions, strict=True)
    return [float("7#" in text) if prompt[0] in "s7" else float(len(text) + text.count("#")) for prompt, text in pairs]


def truth(completions: list[str], **kwargs: Any) -> list[float]:
    return [float("7" in text) for text in completions]


def lengths(completions: list[str], **kwargs: Any) -> list[float]:
    return [len(text) + 2.0 * text.count("7") for text in completions]


def results(trainer: Any, **more: Any) -> dict[str, Any]:
    same_completions(trainer)
    trainer.train()
    assert trainer.accelerator.num_processes == ranks()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    metrics = [{k: v for k, v in entry.items() if not any(part in k for part in PER_RANK)} for entry in entries]
    return {"parameters": parameters(trainer), "metrics": metrics} | more


def settings(**more: Any) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": ROWS // ranks(), "gradient_accumulation_steps": 1, "max_steps": 3,
        "max_completion_length": LENGTH, "shared_prefill": False,
    } | more  # fmt: skip


def experiences(model: Path, folder: Path) -> dict[str, Any]:
    """Lessons and episodes in the prompts, hints for dead groups, other prompts for those that stay dead, a delta."""
    names = [f"{first} {second} " for first in ("say", "1", "7", "#") for second in "17#a"]
    path = folder / "experiences.db"
    library = lessons_library(path) if os.environ.get("RANK", "0") == "0" else path
    callback = ExperienceCallback(library, inject="both", position="prefix", dropout=0.4, template=None)
    hints = RescueCallback(library, visits=1, position="prefix", template=None)
    trainer = extended(
        model, folder / "run", data=Dataset.from_dict({"prompt": names * 2}), reward=by_prompt,
        callbacks=[callback, hints, BitDeltaCallback(BitDeltaConfig())], loss_type="dapo", **settings(dynamic_sampling_rounds=1),
    )  # fmt: skip
    found = results(trainer)
    return found | {"library": contents(callback.library), "counts": hints.counts}


def steered(model: Path, folder: Path) -> dict[str, Any]:
    """A guarded reward and one in worker processes, a curriculum, a schedule, a KL controller, one mean over tokens."""
    data = rows().map(lambda row, index: {"canary": index % 8 == 0, "level": float(index % 16)}, with_indices=True)
    guard = CollapseGuard(lengths, truth, window=2)
    rewards = [guard, IsolatedReward(lengths)]
    trainer = extended(
        model, folder / "run", data=data, reward=rewards, callbacks=[guard.callback()], loss_type="token_mean",
        **settings(curriculum_column="level", clip_schedule="linear", clip_final_factor=0.5, kl_target=1e-6, beta=0.1,
                   num_iterations=2, zero_variance_groups="drop", advantage_clip=2.0),
    )  # fmt: skip
    found = results(trainer)
    return found | {"guard": guard.state_dict(), "curriculum": trainer.curriculum.state_dict()}


FEATURES = {"experiences": experiences, "steered": steered}


def main(model: Path, folder: Path) -> None:
    for name, feature in FEATURES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        torch.save(feature(model, folder / name), folder / f"{name}-{os.environ.get('RANK', '0')}.pt")


if __name__ == "__main__":
    from tests.ranks import leave

    main(Path(sys.argv[1]), Path(sys.argv[2]))
    leave()

"""Run by torchrun: every group lies on two ranks; prints what each rank has injected, rewarded and read."""

import json
import os
import sys
from pathlib import Path

from tests.experience.callback_runs import GROUP, make_trainer, watching
from tests.ranks import leave
from trl_grpo_ext import ExperienceCallback, ExperienceLibrary, Lesson

RANK, FOLDER = int(os.environ["RANK"]), Path(sys.argv[1])
seen, versions, texts = [], [], []
MANY_VERSIONS = 130


def spread(prompts, completions, **kwargs):
    seen.extend(prompts)
    versions.append(callback.library.version)
    texts.append(callback.library.to_bytes().count(b"Count twice."))
    if RANK == 0 and len(versions) == 4:
        write_much()
    return [float(RANK * GROUP + place) for place, _ in enumerate(completions)]


def write_much():
    """Another process's work: more than the history of the file holds."""
    with ExperienceLibrary(FOLDER / "experiences.db") as library:
        for number in range(MANY_VERSIONS):
            library.add(*(Lesson(f"lesson {number} {place}") for place in range(20)))


callback = ExperienceCallback(FOLDER / "experiences.db", inject="both", dropout=0.3, seed=1, same_prompt=True)
trainer = make_trainer(
    FOLDER / "out", [callback], rewards=[spread], max_steps=4, per_device_train_batch_size=GROUP // 2,
    gradient_accumulation_steps=2, save_strategy="steps", save_steps=4,
)  # fmt: skip
with watching(trainer) as watched:
    trainer.train()
held = [(item.id, item.uses, round(item.gain, 6)) for item in callback.library.records()]
result = {
    "prompts": watched["generated"],
    "plain": seen,
    "versions": [*versions, callback.library.version],
    "held": held,
    "horizon": callback.library.horizon,
    "rollouts": callback.library.counters().rollouts,
    "metrics": [entry["experience/injected_share"] for entry in trainer.state.log_history if "loss" in entry],
    "parameters": sum(value.double().sum().item() for value in trainer.model.parameters()),
}
(FOLDER / f"rank-{RANK}.json").write_text(json.dumps(result))
leave()

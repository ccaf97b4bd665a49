"""A short real run with everything that prints and saves, on a tiny local model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from tests.llamafactory_plugin.tiny import build_model


def train(
    output: Path,
    rewards: Sequence[Any],
    *,
    prompts: Sequence[str] = ("red blue", "one two"),
    lessons: Sequence[str] = ("Count twice.",),
    stream: TextIO | None = None,
    **columns: Sequence[Any],
) -> list[dict[str, Any]]:
    """Train two steps of four completions and return the log entries."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from trl_grpo_ext import ExtendedGRPOConfig, ExtendedGRPOTrainer, config_kwargs
    from trl_grpo_ext.experience import ExperienceCallback, ExperienceLibrary, Lesson
    from trl_grpo_ext.health import HealthCallback
    from trl_grpo_ext.report import LiveCallback, ReportCallback

    model = build_model(output.parent / "model")
    rows = [{"prompt": text, **{name: values[0] for name, values in columns.items()}} for text in prompts]
    sizes = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6, "max_steps": 2}
    plain = {"use_cpu": True, "bf16": False, "report_to": [], "logging_steps": 1, "save_steps": 2, "seed": 0}
    config = ExtendedGRPOConfig(**config_kwargs(output_dir=str(output), log_completions=False, **sizes, **plain))
    library = ExperienceLibrary(output.parent / "library.db")
    library.add(*(Lesson(text) for text in lessons))
    callbacks = [ExperienceCallback(library), HealthCallback(), ReportCallback(), LiveCallback(1, stream)]
    trainer = ExtendedGRPOTrainer(
        model=str(model),
        reward_funcs=list(rewards),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=callbacks,
    )
    trainer.train()
    trainer.save_model(str(output))
    library.close()
    return list(trainer.state.log_history)

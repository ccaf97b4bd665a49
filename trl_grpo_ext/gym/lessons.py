"""`TrainingFreeGRPO` under the documents' names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trl_grpo_ext import training_free
from trl_grpo_ext.experience import Lesson
from trl_grpo_ext.gym.rows import row_list
from trl_grpo_ext.gym.settings import GRPOConfig
from trl_grpo_ext.gym.translation import lesson_config


class TrainingFreeGRPO(training_free.TrainingFreeGRPO):
    """`training_free.TrainingFreeGRPO` that takes a `GRPOConfig`, and a slice of a `datasets.Dataset` as data.

    Args:
        base_model: the frozen model: a folder, a model of transformers with its `tokenizer`, or a backend of
            `training_free.backends` for a model behind an endpoint.
        config: a `GRPOConfig`, or what `training_free.TrainingFreeGRPO` takes.
        output_dir: that of the config by default.
        **rest: as there.

    Raises:
        FileNotFoundError: a name that is no folder.
        ValueError: a setting of training with a gradient, or a value that can't work.
    """

    def __init__(
        self,
        base_model: Any,
        config: Any = None,
        *,
        output_dir: str | os.PathLike[str] | None = None,
        **rest: Any,
    ) -> None:
        if isinstance(base_model, str | Path) and not Path(base_model).is_dir():
            raise FileNotFoundError(
                f"base_model={str(base_model)!r} is no folder with a model: download it, or give "
                "trl_grpo_ext.training_free.backends.OpenAIBackend for one that an endpoint serves."
            )
        if isinstance(config, GRPOConfig):
            config, folder = lesson_config(config)
            output_dir = folder if output_dir is None else output_dir
        super().__init__(base_model, config, output_dir=output_dir, **rest)

    def train(self, dataset: Any, reward_model: Any, held_out: Any = None, **more: Any) -> list[Lesson]:
        """Learn, as `training_free.TrainingFreeGRPO.train` does; the data may be `dataset[:100]` of a Dataset."""
        kept = None if held_out is None else row_list(held_out)
        return super().train(row_list(dataset), reward_model, kept, **more)

    def evaluate(self, dataset: Any, *args: Any, **more: Any) -> training_free.Evaluation:
        """Evaluate, as `training_free.TrainingFreeGRPO.evaluate` does; data as for `train`."""
        return super().evaluate(row_list(dataset), *args, **more)

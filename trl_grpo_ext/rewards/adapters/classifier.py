"""Sequence-classification reward models. Needs torch and transformers, imported at the first call."""

import os
from collections.abc import Sequence
from typing import Any

from trl_grpo_ext.rewards.adapters.base import ErrorPolicy, RewardAdapter
from trl_grpo_ext.rewards.adapters.batch import RewardBatch
from trl_grpo_ext.rewards.adapters.calls import as_list, attempt


def _text(tokenizer: Any, prompt: Any, completion: Any) -> str:
    """Join prompt and completion as TRL does for its own reward models."""
    if isinstance(prompt, str):
        return prompt + completion
    return tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)


class ClassifierReward(RewardAdapter):
    """The first logit of a sequence-classification model for prompt and completion, unbounded.

    Equals TRL's own reward models (a string or a model among `reward_funcs`), but scores the prompt without injected
    text (the column `plain_prompt`), in batches, and with an error policy. A conversation goes through the reward
    model's chat template. It runs in the process that calls it, in evaluation mode and without gradients.

    Args:
        model: a path, a hub id, or a loaded `PreTrainedModel` with one label. A path or id is loaded at the first
            call, as float32 unless the checkpoint says otherwise, and is what a pickle holds.
        tokenizer: the model's tokenizer; None (default) loads it from the path, id or `model.config._name_or_path`.
        batch_size: rows per forward pass; 16 by default.
        device: where a model given by path or id goes; None (default) is the current CUDA device, else the CPU. A
            loaded model stays where it is.
        name: the last part of the path or id by default.
        on_error: see `RewardAdapter`. A forward pass that fails is an error of its rows.

    Raises:
        ValueError: `batch_size` below 1, `on_error` is no policy, or, at the first call, a model with another number
            of labels, or a tokenizer without padding token and end-of-sequence token.
        OSError: at the first call, a model that can't be found.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        batch_size: int = 16,
        device: str | None = None,
        name: str | None = None,
        on_error: ErrorPolicy = "raise",
    ) -> None:
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        self.source = model if isinstance(model, str) else model.config._name_or_path
        name = name or self.source.rstrip("/").split("/")[-1] or type(model).__name__
        if batch_size < 1:
            raise ValueError(f"batch_size of reward {name!r} must be 1 or more, not {batch_size}.")
        super().__init__(name, on_error)
        self.batch_size = batch_size
        self.device = device
        self.tokenizer = tokenizer
        self.model = None if isinstance(model, str) else model
        self._reload = isinstance(model, str)
        self._ready = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave out a model that can be loaded again."""
        return self.__dict__ | ({"model": None, "_ready": False} if self._reload else {})

    def _load(self) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if self.model is None:
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            self.model = AutoModelForSequenceClassification.from_pretrained(self.source).to(device)
        if self.tokenizer is None:
            self.tokenizer = AutoTokenizer.from_pretrained(self.source)
        self._check()
        self.model.eval()
        self._ready = True

    def _check(self) -> None:
        labels = self.model.config.num_labels  # type: ignore[union-attr]
        if labels != 1:
            raise ValueError(
                f"Reward model {self.__name__!r} has {labels} labels; a reward model has 1 (num_labels=1)."
            )
        if self.tokenizer.pad_token is None:
            if self.tokenizer.eos_token is None:
                raise ValueError(f"The tokenizer of reward model {self.__name__!r} has no pad_token; set one.")
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # The model finds the last token of a row by this id.
        self.model.config.pad_token_id = self.tokenizer.pad_token_id  # type: ignore[union-attr]

    def _logits(self, texts: Sequence[str]) -> list[float]:
        import torch

        model: Any = self.model
        inputs = self.tokenizer(
            text=list(texts), return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
        )
        with torch.inference_mode():
            return model(**inputs.to(model.device)).logits[:, 0].float().tolist()

    def outcomes(self, batch: RewardBatch) -> list[Any]:
        """Score all rows, `batch_size` at a time."""
        if not self._ready:
            self._load()
        rows = zip(batch.prompts, batch.completions, strict=True)
        texts = [_text(self.tokenizer, prompt, completion) for prompt, completion in rows]
        chunks = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        return [
            reward for chunk in chunks for reward in as_list(self.__name__, attempt(self._logits, chunk), len(chunk))
        ]

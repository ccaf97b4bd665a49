"""What the library's `LogitsProcessor`s share: the episodes of a batch's prompts, and the refusal to touch rollouts.

A rollout that is sampled through one of them does not come from the policy, so that GRPO's ratio would be of another
distribution than the samples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, Trainer

from trl_grpo_ext._attach import callers
from trl_grpo_ext.experience.library import ExperienceLibrary
from trl_grpo_ext.experience.records import Episode


def successful_episodes(
    library: ExperienceLibrary, prompt: str, count: int, where: Mapping[str, Any] | None, same_prompt: bool
) -> list[Episode]:
    """Return up to `count` episodes with an advantage above 0 that are retrieved for a prompt, the best first."""
    found = library.retrieve_episodes(prompt, count, where=where, training=same_prompt, same_prompt=same_prompt)
    records = [item.record for item in found]
    return [record for record in records if isinstance(record, Episode) and record.advantage > 0]


def in_training_step() -> bool:
    """Whether a `transformers.Trainer` is in a training step among the callers."""
    steps = (frame for frame in callers() if frame.f_code.co_name == "training_step")
    return any(isinstance(frame.f_locals.get("self"), Trainer) for frame in steps)


class LibraryProcessor(LogitsProcessor):  # type: ignore[misc]
    """The episodes of each prompt of a batch, and which rows belong to which prompt. Arguments as `SuccessTokenBias`."""

    def __init__(
        self,
        library: ExperienceLibrary,
        tokenizer: Any,
        prompts: Sequence[str],
        *,
        episodes: int,
        where: Mapping[str, Any] | None,
        same_prompt: bool,
    ) -> None:
        self._name = type(self).__name__
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError(f"{self._name}: prompts must be a list of texts, one per row of the batch: {prompts!r}.")
        if not prompts or isinstance(episodes, bool) or not isinstance(episodes, int) or episodes < 1:
            raise ValueError(
                f"{self._name}: there must be at least one prompt and one episode, not {len(prompts)} and {episodes!r}."
            )
        self._tokenizer = tokenizer
        chosen = {
            text: successful_episodes(library, text, episodes, where, same_prompt) for text in dict.fromkeys(prompts)
        }
        self._episodes = [chosen[text] for text in prompts]

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return new scores.

        Args:
            input_ids: prompts and completions so far, (rows, length).
            scores: (rows, vocabulary).

        Raises:
            RuntimeError: in a trainer's training step.
            ValueError: a number of rows that is no multiple of the number of prompts.
        """
        if in_training_step():
            raise RuntimeError(
                f"{self._name} is for inference only: rollouts that are sampled through it are off-policy and GRPO would "
                "learn from wrong ratios; inject experiences by ExperienceCallback instead."
            )
        times, rest = divmod(len(input_ids), len(self._episodes))
        if rest or not times:
            raise ValueError(
                f"{self._name} was made for {len(self._episodes)} prompts and is called with {len(input_ids)} rows; make "
                "a new one for each batch, with the batch's prompts."
            )
        return self._process(input_ids, scores, times)

    @abstractmethod
    def _process(self, input_ids: Any, scores: Any, times: int) -> Any:
        """Return the scores; rows `times * i` to `times * (i + 1) - 1` belong to prompt i."""

"""`ExperienceCallback`: experiences in the prompts of a GRPO run, and its rollouts in the library."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trl_grpo_ext import total_rewards
from trl_grpo_ext._attach import calling_trainer, resumed_checkpoint
from trl_grpo_ext._compat import group_size, prompt_limit
from trl_grpo_ext.experience.injection import completion_text, prompt_text
from trl_grpo_ext.experience.library import ExperienceLibrary
from trl_grpo_ext.experience.observation import (
    ObservedGroup,
    Rollout,
    generation_metrics,
    known_reward,
    library_metrics,
    observed_groups,
)
from trl_grpo_ext.experience.retrieval import Similarity
from trl_grpo_ext.experience.rollout_rows import (
    PLAIN_PROMPT,
    Row,
    injected_row,
    plain_prompt,
    plain_row,
    selection_of,
)
from trl_grpo_ext.experience.selection import Selection, Selector, TokenCounter
from trl_grpo_ext.experience.sharing import SharedLibrary, from_all
from trl_grpo_ext.experience.wrapping import GENERATE, REWARD, Wrapping, check_trainer


class ExperienceCallback(TrainerCallback):
    """Puts experiences into the prompts of a GRPO trainer, and stores its rollouts: `callbacks=[ExperienceCallback(...)]`.

    For TRL's GRPOTrainer and everything derived from it. What a prompt gets is a function of the prompt, the library's
    version, `seed` and the step alone, so it is the same for all rollouts of a group and on every rank. Generation,
    loss, old and reference log-probabilities see the prompt with the experiences; rewards, reward models and the
    library see the plain one. Rows get the column `plain_prompt`, which rewards do not see. While the library holds
    nothing of the kind that is injected, rows are handed on as they are.

    With several ranks the main process stores the groups of an optimizer step in one transaction at its end, and every
    rank goes on with the new version. The reward stored is the weighted sum over the reward functions; rollouts
    without a reward, or with an infinite one, count as rollouts and are not stored. The library's version is saved as
    `experiences.db` in each checkpoint; a run that is resumed goes on with it, and what the file has learned since is
    rolled back (it stays in the file's history).

    Metrics, in training and, the first three, in evaluation: `experience/injected_share`, `experience/tokens`,
    `experience/reward_with`, `experience/reward_without`, `experience/size`, `experience/storage_efficiency`,
    `experience/retention_rate`; see `observation`. Rollouts that an ExtendedGRPOTrainer draws again are injected and
    stored like all others.

    One callback serves one trainer at a time, the last that it was attached to. The trainer's methods are given back
    at the end of training; `attach` it again to evaluate with experiences after that.

    Args:
        library: the library, or the path of its file, made if it is missing. Rank 0's is used.
        inject: "lessons", "episodes" (as worked examples), "both", or "none", which only records.
        position: "system", "user" or "prefix"; see `injection.inject`.
        template: text around the experiences, with `{experiences}` in their place; None for none.
        token_budget: most tokens of the experiences with their template, by the run's tokenizer; None for no limit.
            Where TRL cuts prompts (`max_prompt_length` of TRL 0.24) they get the room that the prompt leaves.
        episodes: most episodes per prompt.
        dropout: share of the groups that are left without experiences, in training. Above 0 it also measures what
            the experiences are worth: `reward_without`, and the learned usefulness of each record.
        record: whether rollouts, and the usefulness of records, are stored; in training only.
        same_prompt: in training, also episodes of the same or a near-same prompt. They give the answer away.
        where: only records with this metadata.
        seed: of dropout.
        similarity: in place of BM25's score, such as `SentenceSimilarity`. It must give the same on every rank.
        metadata_columns: columns of the data set that become metadata of the episodes, such as "domain".

    Raises:
        TypeError: an argument of the wrong type; when attached, something else than a GRPO trainer.
        ValueError: an argument outside its range; when attached, data or settings that this can't work with.
        ExperienceError: the library can't be used.
    """

    def __init__(
        self,
        library: ExperienceLibrary | str | os.PathLike[str],
        *,
        inject: str = "lessons",
        position: str = "system",
        template: str | None = None,
        token_budget: int | None = None,
        episodes: int = 2,
        dropout: float = 0.0,
        record: bool = True,
        same_prompt: bool = False,
        where: Mapping[str, Any] | None = None,
        seed: int = 0,
        similarity: Similarity | None = None,
        metadata_columns: Sequence[str] = (),
    ) -> None:
        if not isinstance(record, bool):
            raise TypeError(f"record must be True or False, not {record!r}.")
        if isinstance(metadata_columns, str) or not all(isinstance(name, str) for name in metadata_columns):
            raise TypeError(f"metadata_columns must be a list of column names, not {metadata_columns!r}.")
        chosen = (inject, position, template, token_budget, episodes, dropout, same_prompt, where, seed, similarity)
        self.selector = Selector(*chosen)
        self.record, self.metadata_columns = record, tuple(metadata_columns)
        self.shared = SharedLibrary(library)
        self.trainer: Any = None
        self._wrappings: list[Wrapping] = []
        self._pending: list[ObservedGroup] = []
        self._observed = False
        self._saved_at = -1

    @property
    def library(self) -> ExperienceLibrary:
        """The library as this rank reads it."""
        return self.shared.reader if self.shared.is_connected else self.shared.writer

    # The trainer.

    def attach(self, trainer: Any) -> None:
        """Wrap two methods of a trainer; given as `callbacks=[...]`, the callback does so by itself.

        Raises:
            TypeError: not a GRPO trainer.
            ValueError: images, tools' environments, a second ExperienceCallback, a token budget that does not fit.
        """
        if trainer is self.trainer and self._wrappings:
            return
        self.detach()
        check_trainer(trainer, self.selector.token_budget, self.metadata_columns)
        self.trainer = trainer
        self._count = TokenCounter(trainer.processing_class)
        self._limit = prompt_limit(trainer)
        self._wrappings = [Wrapping(trainer, GENERATE, self._generate), Wrapping(trainer, REWARD, self._reward)]

    def detach(self) -> None:
        """Give the trainer its methods back."""
        for wrapping in reversed(self._wrappings):
            wrapping.undo()
        self._wrappings = []

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the trainer under construction, so that evaluation without training is covered too."""
        trainer = calling_trainer()
        if trainer is not None:
            self.attach(trainer)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach, and give every rank the library; after a resume, the checkpoint's version of it.

        Raises:
            RuntimeError: called by something else than a `transformers.Trainer`.
            ValueError: rewards that the trainer computes after TRL's, which could not be recorded.
        """
        trainer = calling_trainer()
        if trainer is None:
            raise RuntimeError("ExperienceCallback found no trainer among its callers; call attach(trainer) instead.")
        self.attach(trainer)
        if self.record and any(getattr(reward, "computed_by_trainer", False) for reward in trainer.reward_funcs):
            raise ValueError("record=True can't see the rewards of SelfCertainty, which come later; set record=False.")
        self._pending, self._observed, self._saved_at = [], False, -1
        self.shared.connect(trainer.accelerator, resumed_checkpoint(trainer))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the trainer its methods back, and write what a library on a network file system holds back."""
        self.detach()
        if state.is_world_process_zero:
            self.shared.writer.flush()

    # A generation.

    @property
    def _mode(self) -> str:
        return "train" if self.trainer.model.training else "eval"

    def _generate(self, generate: Callable[[list[Row]], Any], inputs: list[Row]) -> Any:
        if not self.shared.is_connected:
            self.shared.connect(self.trainer.accelerator)
        # Rows that somebody else has put something into are left alone.
        if PLAIN_PROMPT in inputs[0] or self.selector.is_empty(self.shared.reader):
            return generate(inputs)
        chosen: dict[str, Selection] = {}
        return generate([injected_row(row, self._selection(row, chosen), self.selector) for row in inputs])

    def _selection(self, row: Row, chosen: dict[str, Selection]) -> Selection:
        """What a row gets; once per prompt and generation, so that a group is not split by a write in between."""
        key = repr(row["prompt"])
        if key not in chosen:
            step, training = self.trainer.state.global_step, self._mode == "train"
            given = (self.shared.reader, row["prompt"], step, training, self._count, self._limit)
            chosen[key] = self.selector.choose(*given)
        return chosen[key]

    def _reward(
        self, calculate: Callable[..., Any], inputs: list[Row], prompts: Any, completions: Any, ids: Any
    ) -> Any:
        rows = inputs
        if PLAIN_PROMPT in inputs[0]:
            prompts = [plain_prompt(row, given) for row, given in zip(inputs, prompts, strict=True)]
            rows = [plain_row(row, prompt) for row, prompt in zip(inputs, prompts, strict=True)]
        rewards = calculate(rows, prompts, completions, ids)
        if all(selection_of(row) is not None for row in inputs):
            self._observe(list(map(self._rollout, inputs, prompts, completions)), rewards)
        return rewards

    def _rollout(self, row: Row, prompt: Any, completion: Any) -> Rollout:
        """What the other ranks learn of a row; no text where nothing is recorded."""
        selection = selection_of(row) or Selection()
        if not self._recording:
            return Rollout("", "", selection)
        metadata = {name: row[name] for name in self.metadata_columns if row.get(name) is not None}
        return Rollout(prompt_text(prompt), completion_text(completion), selection, metadata)

    @property
    def _recording(self) -> bool:
        return self.record and self._mode == "train"

    def _observe(self, local: list[Rollout], rewards: Any) -> None:
        trainer, rollouts = self.trainer, from_all(local)
        totals = [known_reward(total) for total in total_rewards(rewards, trainer.reward_weights).tolist()]
        self._log(self._mode, generation_metrics([rollout.selection for rollout in rollouts], totals))
        if self._recording:
            self._observed = True
            step, before = trainer.state.global_step + 1, len(self._pending)
            self._pending += observed_groups(rollouts, totals, group_size(trainer), step, before)

    def _log(self, mode: str, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.trainer._metrics[mode][f"experience/{name}"].append(value)

    # A step.

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Store what this optimizer step has seen, and bring every rank to the new version."""
        if self._observed:
            self.shared.store(self.trainer.accelerator, self._pending, state.global_step)
        self._pending, self._observed = [], False
        self._log("train", library_metrics(self.shared.reader.counters()))

    def save_into(self, folder: Path) -> None:
        """Put the library into a checkpoint while it is written; a `CheckpointCallback` calls it."""
        self.shared.save(self.trainer.accelerator, folder)
        self._saved_at = self.trainer.state.global_step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the library beside the checkpoint, where nobody has asked for it before."""
        if self._saved_at != state.global_step:
            self.save_into(Path(args.output_dir) / f"checkpoint-{state.global_step}")

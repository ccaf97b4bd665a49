"""`TrainingFreeGRPO`: learn lessons, evaluate them, and answer with them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

from trl_grpo_ext.experience import ExperienceLibrary, Lesson, Stored
from trl_grpo_ext.training_free.budget import Meter
from trl_grpo_ext.training_free.cache import CallCache
from trl_grpo_ext.training_free.calls import Caller, derived_seed
from trl_grpo_ext.training_free.changes import domain_lessons
from trl_grpo_ext.training_free.config import TrainingFreeConfig
from trl_grpo_ext.training_free.evaluation import Evaluation, evaluation_of
from trl_grpo_ext.training_free.models import answer, as_backend
from trl_grpo_ext.training_free.parsing import without_thoughts
from trl_grpo_ext.training_free.preparation import training_problems
from trl_grpo_ext.training_free.problems import read_problems
from trl_grpo_ext.training_free.prompts import policy_messages
from trl_grpo_ext.training_free.protocol import ChatRequest
from trl_grpo_ext.training_free.report import LIBRARY_FILE, RUN_FILE, Report, write_results
from trl_grpo_ext.training_free.rollouts import Ask, Rollout, check_answered, roll_out
from trl_grpo_ext.training_free.run import OnProgress, Run
from trl_grpo_ext.training_free.steps import settings_for
from trl_grpo_ext.training_free.verifier import Verifier

Dataset: TypeAlias = Iterable[Mapping[str, Any]]
Experiences: TypeAlias = ExperienceLibrary | Sequence[Lesson | str]


def _as_config(config: TrainingFreeConfig | Mapping[str, Any] | None) -> TrainingFreeConfig:
    if isinstance(config, Mapping):
        return TrainingFreeConfig.from_mapping(config)
    if config is not None and not isinstance(config, TrainingFreeConfig):
        raise TypeError(
            f"config must be a TrainingFreeConfig or a mapping of its settings, not {type(config).__name__}."
        )
    return config or TrainingFreeConfig()


class TrainingFreeGRPO:
    """Training-Free GRPO (arXiv 2510.08191): the policy stays as it is, and a library of lessons in its prompt is learned.

    Each step samples `num_generations` rollouts per problem, compares those of each group whose rewards differ, makes
    one plan of what the groups propose, and takes it over if the acceptance gate finds it better on held-out problems.

    Args:
        base_model: the policy: a backend, a model of transformers, or a folder that holds one.
        config: settings; the defaults, or a mapping for `TrainingFreeConfig.from_mapping`.
        tokenizer: of a model of transformers that is handed over as an object.
        reflector: the model that reflects, a backend or a folder; the policy by default.
        output_dir: folder of the library, the journal and the reports, made if it is missing. A run in it is resumed.
            None keeps everything in memory.
        library: the library to change; `output_dir`/library.db, or one in memory, by default. A resumable run needs one
            in a file.

    Attributes:
        report: of the last `train`; None before.

    Raises:
        TypeError: a model of another kind, or a config that is neither a TrainingFreeConfig nor a mapping.
        ValueError: settings out of range.
    """

    def __init__(
        self,
        base_model: Any,
        config: TrainingFreeConfig | Mapping[str, Any] | None = None,
        *,
        tokenizer: Any = None,
        reflector: Any = None,
        output_dir: str | os.PathLike[str] | None = None,
        library: ExperienceLibrary | None = None,
    ) -> None:
        self.policy = as_backend(base_model, tokenizer=tokenizer)
        self.reflector = self.policy if reflector is None else as_backend(reflector, "reflector")
        self.config = _as_config(config)
        self.output_dir = None if output_dir is None else Path(output_dir)
        if self.output_dir is not None:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        self.library = library if library is not None else ExperienceLibrary(self._file(LIBRARY_FILE))
        self.report: Report | None = None

    def _file(self, name: str) -> Path | None:
        return None if self.output_dir is None else self.output_dir / name

    def train(
        self,
        dataset: Dataset,
        reward_model: Any,
        held_out: Dataset | None = None,
        *,
        on_progress: OnProgress | None = None,
    ) -> list[Lesson]:
        """Learn; returns the lessons of the library afterwards. `report` says what happened, and why it stopped.

        Called again with the same settings, models, reward, data and `output_dir` it continues where it was: after a
        reached budget, Ctrl-C or a kill. Replies that had arrived cost nothing again. Without `output_dir` each call is
        a run of its own, which starts from the lessons that the library has.

        Args:
            dataset: rows with a prompt (see `read_problems`), an answer, and what else the reward reads.
            reward_model: the verifier: a reward of this package by name, `file.py:function`, a reward function of TRL,
                or a function of (query, response).
            held_out: rows for the gate, disjoint from the dataset; by default `held_out_share` of the dataset.
            on_progress: called with `Progress` after each call of a model; what it raises stops the run, resumably.

        Raises:
            RunChangedError: the folder holds a run with other settings.
            RunBusyError: another process is at work in the folder.
            BackendError: a model is not there. The run can be resumed.
            ValueError: rows without a prompt, held-out problems that are too few or among the others, a reward that
                can't be called on the rows or leaves the gate's range.
        """
        problems, kept = training_problems(self.config, dataset, held_out)
        models = (self.policy, self.reflector)
        run = Run(self.config, *models, reward_model, problems, kept, self.library, self._file(RUN_FILE), on_progress)
        try:
            self._train(run)
        finally:
            run.close()
        return self.lessons()

    def _train(self, run: Run) -> None:
        try:
            self.report = run.train()
        except BaseException as error:
            self.report = run.report("interrupted", f"{type(error).__name__}: {error}".rstrip(": "))
            raise
        finally:
            if self.report is not None and self.output_dir is not None:
                write_results(self.output_dir, self.report, self.library, self.lessons(), self.config.template)

    def close(self) -> None:
        """Close the library's file."""
        self.library.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def lessons(self, experiences: Experiences | None = None) -> list[Lesson]:
        """Return lessons as a list: those of this library's domain, or what is given instead."""
        source = self.library if experiences is None else experiences
        if isinstance(source, ExperienceLibrary):
            found = (item.record for item in domain_lessons(source, self.config.domain))
            return [record for record in found if isinstance(record, Lesson)]
        return [item if isinstance(item, Lesson) else Lesson(item, 0.0) for item in source]

    def evaluate(
        self,
        dataset: Dataset,
        reward_model: Any,
        experiences: Experiences | None = None,
        *,
        samples: int = 1,
    ) -> Evaluation:
        """Return rewards on a dataset, with the lessons in the prompt as in training, at `eval_temperature`.

        Two evaluations of one model use the same seeds, so they can be compared pair by pair. Nothing is cached. The
        reward sees every column, in the ground-truth-free mode too: nothing is learned from an evaluation.

        Args:
            dataset: rows, as for `train`.
            reward_model: as for `train`.
            experiences: lessons, texts, a library, or [] for none; this library by default.
            samples: rollouts per problem.

        Raises:
            BackendError: every rollout failed.
            BudgetReached: a limit of the budget was reached; each evaluation has the whole budget.
            ValueError: a number of samples below 1.
        """
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples must be a whole number of at least 1, not {samples!r}.")
        cache = CallCache()
        try:
            rollouts = self._evaluate(cache, dataset, reward_model, self.lessons(experiences), samples)
        finally:
            cache.close()
        check_answered(rollouts, "of the evaluation")
        return evaluation_of(rollouts)

    def _evaluate(
        self, cache: CallCache, dataset: Dataset, reward_model: Any, lessons: Sequence[Lesson], samples: int
    ) -> list[Rollout]:
        config = self.config
        problems = read_problems(dataset, config.answer_columns)
        verifier = Verifier(reward_model, cache)
        verifier.check(problems)
        shown = tuple(Stored(lesson.id, lesson) for lesson in lessons)
        asks = [
            Ask(problem, shown, derived_seed(config.seed, "evaluate", problem.id, number))
            for problem in problems
            for number in range(samples)
        ]
        policy = Caller(self.policy, cache, Meter(config.budget), config.max_attempts)
        return roll_out(asks, policy, verifier, settings_for(config, config.eval_temperature))

    def infer(self, query: str | list[dict[str, str]], experiences: Experiences | None = None) -> str:
        """Return the policy's answer to a question, with the lessons in the prompt as in training.

        Args:
            query: the question, or messages.
            experiences: lessons, texts, a library, or [] for none; this library by default.

        Raises:
            BackendError: the call failed.
        """
        config = self.config
        messages = policy_messages(query, self.lessons(experiences), config.template)
        request = ChatRequest(messages, config.eval_temperature, config.max_completion_length, config.seed)
        return without_thoughts(answer(self.policy, request).text)

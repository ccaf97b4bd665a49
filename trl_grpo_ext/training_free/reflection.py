"""From rollouts to operations: a summary of each rollout, a comparison of each group, one plan of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trl_grpo_ext.training_free.asking import Question, Refused, Unanswered, ask_all
from trl_grpo_ext.training_free.calls import Caller
from trl_grpo_ext.training_free.config import TrainingFreeConfig
from trl_grpo_ext.training_free.operations import Operation, Rejected, Rules, Source, validated
from trl_grpo_ext.training_free.parsing import parse_operations, parse_summary
from trl_grpo_ext.training_free.problems import Problem
from trl_grpo_ext.training_free.prompts import (
    Messages,
    comparison_messages,
    consolidation_messages,
    shortened,
    summary_messages,
)
from trl_grpo_ext.training_free.rollouts import Rollout


@dataclass(frozen=True)
class Group:
    """The rollouts of one problem that are compared.

    Args:
        rollouts: answered and judged ones.
        step: when they were sampled.
        attempts: how many steps have tried to compare them and failed.
    """

    rollouts: tuple[Rollout, ...]
    step: int
    attempts: int = 0

    @property
    def problem(self) -> Problem:
        """What was asked."""
        return self.rollouts[0].problem


@dataclass(frozen=True)
class Failure:
    """A group that could not be compared: the stage (summary or comparison), and the last error."""

    group: Group
    stage: str
    error: str


@dataclass
class Reflections:
    """What a batch of groups gave: proposed operations with their problems, refusals, and groups left pending."""

    proposals: list[Operation] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    pending: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """The operations of a step, those refused, and how they were joined: "none", "one", "reflector" or "rule"."""

    operations: list[Operation]
    rejected: list[Rejected]
    joined_by: str


class Reflector:
    """The reflecting model with the settings of a run.

    Args:
        caller: the model.
        config: the run's settings.
        step: part of the seeds.
        lessons: text by id: the library at hand.
        harmful: texts that were retired as harmful.
        elsewhere: text by id of the lessons of other domains.
    """

    def __init__(
        self,
        caller: Caller,
        config: TrainingFreeConfig,
        step: int,
        lessons: Mapping[str, str],
        harmful: Sequence[str] = (),
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        self._caller, self._config, self._step = caller, config, step
        self._lessons, self._harmful = dict(lessons), tuple(harmful)
        self._elsewhere = dict(elsewhere or {})

    def _ask(self, questions: Sequence[Question]) -> list:
        config = self._config
        limits = (config.reflection_temperature, config.max_reflection_length, config.max_reasks)
        return ask_all(questions, self._caller, *limits)

    def _rules(self, sources: Sequence[Source]) -> Rules:
        known = sources if self._config.given_ground_truth else [Source(source.text) for source in sources]
        return Rules(self._lessons, self._config.max_lesson_words, known, self._harmful, self._elsewhere)

    def _answer(self, problem: Problem) -> str | None:
        return problem.answer if self._config.given_ground_truth else None

    def reflect(self, groups: Sequence[Group]) -> Reflections:
        """Summarise and compare; a group that fails in either stage is pending, with the reason."""
        found = Reflections()
        summaries = self._summaries(groups)
        ready = []
        for group, texts in zip(groups, summaries, strict=True):
            failed = next((text for text in texts if isinstance(text, Unanswered)), None)
            if failed is not None:
                found.pending.append(Failure(group, "summary", failed.error))
            else:
                ready.append((group, [str(text) for text in texts]))
        answers = self._ask([self._comparison(group, texts) for group, texts in ready])
        for (group, _), answer in zip(ready, answers, strict=True):
            self._take(group, answer, found)
        return found

    def _take(
        self, group: Group, answer: tuple[list[Operation], list[Rejected]] | Unanswered, found: Reflections
    ) -> None:
        if not isinstance(answer, Unanswered):
            found.proposals += answer[0]
            found.rejected += answer[1]
            found.sources += [group.problem.source] if answer[0] else []
        elif answer.understood:
            found.rejected += answer.rejected
        else:
            found.pending.append(Failure(group, "comparison", answer.error))

    def _summaries(self, groups: Sequence[Group]) -> list[list[str | Unanswered]]:
        questions = [
            Question(self._summary(rollout), (*self._seed(group), "summary", place), parse_summary)
            for group in groups
            for place, rollout in enumerate(group.rollouts)
        ]
        answers = iter(self._ask(questions))
        return [[next(answers) for _ in group.rollouts] for group in groups]

    def _seed(self, group: Group) -> tuple[object, ...]:
        return (self._config.seed, "reflect", self._step, group.step, group.problem.id)

    def _summary(self, rollout: Rollout) -> Messages:
        config, problem = self._config, rollout.problem
        return summary_messages(
            config.objective,
            shortened(problem.text, config.max_trajectory_chars),
            shortened(rollout.text, config.max_trajectory_chars),
            rollout.reward,
            self._answer(problem),
            [self._lessons[name] for name in rollout.shown if name in self._lessons],
        )

    def _comparison(self, group: Group, summaries: Sequence[str]) -> Question:
        config, problem = self._config, group.problem
        attempts = [
            (shortened(text, config.max_trajectory_chars), rollout.reward)
            for text, rollout in zip(summaries, group.rollouts, strict=True)
        ]
        messages = comparison_messages(
            config.objective,
            config.learning_objective,
            shortened(problem.text, config.max_trajectory_chars),
            attempts,
            self._answer(problem),
            self._lessons,
            config.lessons_per_group,
            config.max_lesson_words,
        )
        rules = self._rules([problem.source])

        def parse(text: str) -> tuple[list[Operation], list[Rejected]]:
            return _checked(parse_operations(text, self._lessons, config.lessons_per_group), rules)

        return Question(messages, (*self._seed(group), "comparison"), parse)

    def plan(self, found: Reflections) -> Plan:
        """Join the proposals of a batch: by the reflector, or, where it fails to, by `validated` alone."""
        rules = self._rules(found.sources)
        if len(found.proposals) < 2:
            kept, rejected = validated(found.proposals, rules)
            return Plan(kept, rejected, "one" if found.proposals else "none")
        messages = consolidation_messages(self._lessons, found.proposals, self._config.max_lesson_words)

        def parse(text: str) -> tuple[list[Operation], list[Rejected]]:
            return _checked(parse_operations(text, self._lessons, len(found.proposals)), rules)

        answer = self._ask([Question(messages, (self._config.seed, "plan", self._step), parse)])[0]
        if isinstance(answer, Unanswered):
            kept, rejected = validated(found.proposals, rules)
            return Plan(kept, rejected, "rule")
        kept, rejected = answer
        return Plan(kept, rejected, "reflector")


def _checked(operations: Sequence[Operation], rules: Rules) -> tuple[list[Operation], list[Rejected]]:
    kept, rejected = validated(operations, rules)
    if rejected and not kept:
        raise Refused(rejected)
    return kept, rejected

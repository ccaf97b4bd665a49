"""One step: rollouts, reflection, the gate's decision, and the record that the library then takes over whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trl_grpo_ext.experience import ExperienceLibrary, Stored
from trl_grpo_ext.training_free.acceptance import compare
from trl_grpo_ext.training_free.calls import Caller, derived_seed
from trl_grpo_ext.training_free.changes import change_library, domain_lessons, texts
from trl_grpo_ext.training_free.config import TrainingFreeConfig
from trl_grpo_ext.training_free.evidence import gains, harmful, inclusions, measured
from trl_grpo_ext.training_free.gate import AcceptanceGate, Decision
from trl_grpo_ext.training_free.pending import as_record, from_record
from trl_grpo_ext.training_free.problems import Problem
from trl_grpo_ext.training_free.reflection import Group, Plan, Reflections, Reflector
from trl_grpo_ext.training_free.rollouts import (
    Ask,
    Rollout,
    Settings,
    check_answered,
    figures,
    grouped,
    roll_out,
    shown_lessons,
    teaches,
)
from trl_grpo_ext.training_free.usefulness import Usefulness
from trl_grpo_ext.training_free.verifier import Verifier


@dataclass(frozen=True)
class Context:
    """What all steps of a run share.

    Args:
        config: the settings.
        policy: the model that is taught.
        reflector: the model that reflects.
        verifier: the reward.
        held_out: problems of the gate.
        problems: every training problem by id.
        looks: steps of the run: at each of them lessons may be retired.
    """

    config: TrainingFreeConfig
    policy: Caller
    reflector: Caller
    verifier: Verifier
    held_out: Sequence[Problem]
    problems: Mapping[str, Problem]
    looks: int

    def roll(self, asks: Sequence[Ask], temperature: float) -> list[Rollout]:
        """Make rollouts."""
        return roll_out(asks, self.policy, self.verifier, settings_for(self.config, temperature))


def settings_for(config: TrainingFreeConfig, temperature: float) -> Settings:
    """Return how rollouts are sampled at a temperature."""
    return Settings(temperature, config.max_completion_length, config.template, config.failure_reward)


@dataclass(frozen=True)
class Situation:
    """What a step begins with, once its rollouts are there.

    Args:
        step: its number.
        lessons: those of the domain, by the library at hand.
        elsewhere: text by id of the lessons of other domains.
        rollouts: of this step.
        found: what the rollouts of all steps say about each lesson.
        retired: text by id of the lessons that they show to be harmful.
        history: records of the steps before.
    """

    step: int
    lessons: Sequence[Stored]
    elsewhere: Mapping[str, str]
    rollouts: Sequence[Rollout]
    found: Mapping[str, Usefulness]
    retired: Mapping[str, str]
    history: Sequence[Mapping[str, Any]]

    @property
    def kept(self) -> list[Stored]:
        """The lessons without the harmful ones."""
        return [item for item in self.lessons if item.id not in self.retired]


def decide_step(
    context: Context,
    library: ExperienceLibrary,
    step: int,
    batch: Sequence[Problem],
    history: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the record of a step. Nothing is changed but the cache.

    Args:
        context: of the run.
        library: the library at hand.
        step: number of the step.
        batch: its problems; none where it only tries pending groups again.
        history: records of the steps before.

    Raises:
        BackendError: every rollout failed: the model is not there.
        BudgetReached: a limit was reached; the same step continues at the next `train`.
    """
    now = _situation(context, library, step, batch, history)
    groups = _groups(context, now)
    reflector = _reflector(context, now)
    reflections = reflector.reflect(groups)
    plan = reflector.plan(reflections)
    decision = _decision(context, library, now, plan)
    accepted = bool(plan.operations) and (decision is None or decision.verdict == "accept")
    return {
        "step": step,
        "inclusions": inclusions(now.rollouts) if context.config.lesson_dropout else [],
        "usage": gains(now.rollouts, texts(now.lessons)),
        "retired": dict(now.retired),
        "operations": [operation.as_dict() for operation in plan.operations] if accepted else [],
        "pending": [as_record(failure) for failure in reflections.pending],
        "report": _report(now, len(groups), reflections, plan, decision, accepted),
    }


def _situation(
    context: Context,
    library: ExperienceLibrary,
    step: int,
    batch: Sequence[Problem],
    history: Sequence[Mapping[str, Any]],
) -> Situation:
    config = context.config
    lessons = domain_lessons(library, config.domain)
    rollouts = _training_rollouts(context, lessons, step, batch)
    check_answered(rollouts, f"of step {step}")
    here = texts(lessons)
    shown = {"step": step, "operations": [], "inclusions": inclusions(rollouts) if config.lesson_dropout else []}
    found = measured([*history, shown], here, config.retire_alpha / context.looks)
    retired = {name: here[name] for name in harmful(found, config.min_retire_problems)}
    elsewhere = {name: text for name, text in texts(library.records("lesson")).items() if name not in here}
    return Situation(step, lessons, elsewhere, rollouts, found, retired, history)


def _training_rollouts(
    context: Context, lessons: Sequence[Stored], step: int, batch: Sequence[Problem]
) -> list[Rollout]:
    config = context.config
    asks = []
    for problem in batch:
        for number in range(config.num_generations):
            parts = (config.seed, "rollout", step, problem.id, number)
            asks.append(Ask(problem, shown_lessons(lessons, config.lesson_dropout, *parts), derived_seed(*parts)))
    return context.roll(asks, config.temperature) if asks else []


def _groups(context: Context, now: Situation) -> list[Group]:
    """What is compared: groups that are pending since earlier steps, then those of this step that teach something."""
    waiting = now.history[-1]["pending"] if now.history else []
    groups = [from_record(item, context.problems) for item in waiting]
    for group in grouped(now.rollouts):
        if teaches(group, context.config.require_spread):
            groups.append(Group(tuple(rollout for rollout in group if rollout.counts), now.step))
    return groups


def _reflector(context: Context, now: Situation) -> Reflector:
    retired = [*(record["retired"] for record in now.history), now.retired]
    known_harmful = [text for lessons in retired for text in lessons.values()]
    return Reflector(context.reflector, context.config, now.step, texts(now.kept), known_harmful, now.elsewhere)


def _decision(context: Context, library: ExperienceLibrary, now: Situation, plan: Plan) -> Decision | None:
    """The gate's word on the plan; None where there is no gate, or nothing to decide."""
    config = context.config
    if config.gate is None or not plan.operations:
        return None
    # The candidate is made by the code that will change the library itself: what is judged is what is stored.
    change = {"usage": [], "retired": now.retired, "operations": plan.operations}
    with ExperienceLibrary.from_bytes(library.to_bytes()) as copy:
        change_library(copy, now.step, change, config.domain)
        candidate = domain_lessons(copy, config.domain)

    def roll(asks: Sequence[Ask]) -> list[Rollout]:
        return context.roll(asks, config.eval_temperature)

    return compare(now.kept, candidate, context.held_out, AcceptanceGate(config.gate), roll, config.seed)


def _report(
    now: Situation, compared: int, reflections: Reflections, plan: Plan, decision: Decision | None, accepted: bool
) -> dict[str, Any]:
    rejected = [*reflections.rejected, *plan.rejected]
    return {
        **figures(now.rollouts),
        "groups": len(grouped(now.rollouts)),
        "groups_compared": compared,
        "proposals": len(reflections.proposals),
        "joined_by": plan.joined_by,
        "rejected": [{**item.operation.as_dict(), "reason": item.reason} for item in rejected],
        "candidate": [operation.as_dict() for operation in plan.operations],
        "accepted": accepted,
        "gate": None if decision is None else asdict(decision),
        "pending": len(reflections.pending),
        "retired": list(now.retired),
        "lessons": {name: _effect(item) for name, item in now.found.items()},
    }


def _effect(item: Usefulness) -> dict[str, float | None]:
    values = {"effect": item.effect, "lower": item.lower, "upper": item.upper}
    known = item.problems > 1
    return {**{name: value if known else None for name, value in values.items()}, "problems": item.problems}

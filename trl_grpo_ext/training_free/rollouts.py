"""Rollouts: what is asked of the policy, with which lessons, and what came back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any

from trl_grpo_ext.experience import Lesson, Stored
from trl_grpo_ext.training_free.calls import Caller, derived_seed
from trl_grpo_ext.training_free.parsing import without_thoughts
from trl_grpo_ext.training_free.problems import Problem
from trl_grpo_ext.training_free.prompts import policy_messages
from trl_grpo_ext.training_free.protocol import BackendError, ChatReply, ChatRequest
from trl_grpo_ext.training_free.verifier import Row, Verifier


@dataclass(frozen=True)
class Rollout:
    """One attempt.

    Args:
        problem: what was asked.
        shown: ids of the lessons in its prompt.
        text: the answer without its thoughts; empty where the call failed.
        reward: by the verifier; the reward of a failure where the call or the verifier failed.
        error: why the call failed; empty where it did not.
        judged: whether the verifier gave a reward.
    """

    problem: Problem
    shown: tuple[str, ...]
    text: str
    reward: float
    error: str = ""
    judged: bool = True

    @property
    def counts(self) -> bool:
        """Whether the rollout says something about the policy: answered and judged."""
        return self.judged and not self.error


@dataclass(frozen=True)
class Settings:
    """How rollouts are sampled: temperature, most tokens, template around the lessons, and a failure's reward."""

    temperature: float
    max_tokens: int
    template: str | None
    failure_reward: float


@dataclass(frozen=True)
class Ask:
    """A rollout to be made: the problem, the lessons shown, the seed of its sampling, and the arm it belongs to."""

    problem: Problem
    lessons: tuple[Stored, ...]
    seed: int
    arm: str = ""


def shown_lessons(lessons: Sequence[Stored], dropout: float, *seed: object) -> tuple[Stored, ...]:
    """Return the lessons that one rollout is shown: each is hidden with the probability `dropout`, on its own."""
    if not dropout:
        return tuple(lessons)
    return tuple(item for item in lessons if Random(derived_seed(*seed, "shown", item.id)).random() >= dropout)


def roll_out(asks: Sequence[Ask], policy: Caller, verifier: Verifier, settings: Settings) -> list[Rollout]:
    """Return one rollout per ask. Those that failed are among them, with the reward of a failure."""
    requests = [_request(ask, settings) for ask in asks]
    outcomes = policy.complete(requests)
    texts = [without_thoughts(outcome.text) if isinstance(outcome, ChatReply) else "" for outcome in outcomes]
    # Failed ones too: rewards that compare the rollouts of a prompt need groups of one size.
    rows = [Row(ask.problem, text, f"{ask.problem.id} {ask.arm}") for ask, text in zip(asks, texts, strict=True)]
    rewards = verifier(rows)
    rollouts = []
    for ask, outcome, text, reward in zip(asks, outcomes, texts, rewards, strict=True):
        error = "" if isinstance(outcome, ChatReply) else str(outcome) or type(outcome).__name__
        value = settings.failure_reward if error or reward is None else reward
        shown = tuple(item.id for item in ask.lessons)
        rollouts.append(Rollout(ask.problem, shown, text, value, error, reward is not None))
    return rollouts


def _request(ask: Ask, settings: Settings) -> ChatRequest:
    lessons = [item.record for item in ask.lessons if isinstance(item.record, Lesson)]
    messages = policy_messages(ask.problem.prompt, lessons, settings.template)
    return ChatRequest(messages, settings.temperature, settings.max_tokens, ask.seed)


def check_answered(rollouts: Sequence[Rollout], where: str) -> None:
    """Refuse to learn from a model that is not there.

    Raises:
        BackendError: every call failed.
    """
    if rollouts and all(rollout.error for rollout in rollouts):
        raise BackendError(
            f"all {len(rollouts)} rollouts {where} failed, the last with: {rollouts[-1].error} Nothing of this step was "
            "stored, and no reply is lost: repair the model's backend and run the same command again."
        )


def grouped(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    """Return the rollouts of each problem, in the order of the problems."""
    groups: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.problem.id, []).append(rollout)
    return list(groups.values())


def spread(group: Sequence[Rollout]) -> float:
    """Return the largest minus the smallest reward among the rollouts that were answered and judged."""
    rewards = [rollout.reward for rollout in group if rollout.counts]
    return max(rewards) - min(rewards) if rewards else 0.0


def teaches(group: Sequence[Rollout], require_spread: bool) -> bool:
    """Return whether a group is compared: there are winners and losers, or no spread is asked for."""
    return spread(group) > 0 if require_spread else any(rollout.counts for rollout in group)


def figures(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Return mean reward and counts; failed and unjudged rollouts are in the denominators."""
    return {
        "rollouts": len(rollouts),
        "reward": fmean(rollout.reward for rollout in rollouts) if rollouts else 0.0,
        "failed": sum(bool(rollout.error) for rollout in rollouts),
        "unjudged": sum(not rollout.judged and not rollout.error for rollout in rollouts),
    }

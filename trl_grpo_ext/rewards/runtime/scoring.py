"""Scoring a batch in workers: which rows need a call, and what became of each."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trl_grpo_ext.rewards.errors import RewardError
from trl_grpo_ext.rewards.runtime.arguments import pickled_state, replay_extra, replay_metrics, rows_of, split_columns
from trl_grpo_ext.rewards.runtime.cache import row_key
from trl_grpo_ext.rewards.runtime.functions import Shipment
from trl_grpo_ext.rewards.runtime.jobs import Job, Outcome
from trl_grpo_ext.rewards.runtime.policies import Policy
from trl_grpo_ext.rewards.runtime.pool import COUNTERS, RewardRuntime
from trl_grpo_ext.rewards.runtime.rows import checked_rewards

_COUNTED = {"error": "errors", "timeout": "timeouts", "killed": "kills"}
Arguments = Mapping[str, Any]


@dataclass
class Scored:
    """What came of one call: its rewards or its error, and what the trainer is to be told besides."""

    counts: dict[str, int]
    rewards: list[float | None] = field(default_factory=list)
    outcomes: list[tuple[list[int], Outcome]] = field(default_factory=list)
    error: Exception | None = None

    @classmethod
    def of(cls, score: Callable[..., list[float | None]], arguments: Arguments, *more: Any) -> "Scored":
        """Call `score(arguments, scored, *more)`, and keep its rewards or its exception."""
        scored = cls(dict.fromkeys(COUNTERS, 0) | {"rows": len(arguments["completions"])})
        try:
            scored.rewards = score(arguments, scored, *more)
        except Exception as error:
            scored.error = error
        return scored

    def replay(self, arguments: Arguments) -> None:
        """Give what the function logged in the workers to the trainer's own `log_extra` and `log_metric`."""
        if arguments.get("log_extra") is not None:
            calls = [(outcome.reply, rows) for rows, outcome in self.outcomes]
            replay_extra(calls, self.counts["rows"], arguments["log_extra"])
        if arguments.get("log_metric") is not None:
            replay_metrics([outcome.reply for _, outcome in self.outcomes], arguments["log_metric"])


@dataclass(frozen=True)
class Scorer:
    """How one reward function is called in workers. `IsolatedReward` documents the fields."""

    shipment: Shipment
    on_error: Policy
    on_kill: Policy
    deadline: float | None
    rowwise: bool
    cached: bool
    sandbox: bool
    allow_unsandboxed: bool

    def score(
        self, runtime: RewardRuntime, arguments: Arguments, scored: Scored, stop: threading.Event | None = None
    ) -> list[float | None]:
        """Return one reward or None per completion, and keep outcomes and counts in `scored`.

        Raises:
            RewardError, RewardLoadError, ValueError: see `IsolatedReward`; CancelledError after `stop`.
        """
        counts, count = scored.counts, scored.counts["rows"]
        columns = split_columns(count, arguments)
        keys = [row_key(self.shipment.version, row) if self.cached else None for row in rows_of(columns, count)]
        groups, known = self._plan(runtime, keys)
        outcomes = self._expand(groups, runtime.run(self._job(runtime, columns, groups, arguments), stop))
        rewards = [known.get(row) for row in range(count)]
        for rows, outcome in outcomes:
            for row, reward in zip(rows, self._rewards(outcome, rows, counts), strict=True):
                rewards[row] = reward
                if outcome.may_be_kept:
                    runtime.cache.store(keys[row], reward)
        counts["cache_hits"] = len(known) + (len(outcomes) - len(groups))
        scored.outcomes = outcomes
        counts["skips"] = sum(reward is None for reward in rewards)
        return rewards

    def _plan(self, runtime: RewardRuntime, keys: list[str | None]) -> tuple[list[list[int]], dict[int, float | None]]:
        """Return the rows of each call to make (equal rows share one), and the results that are known already."""
        found = [runtime.cache.find(key) for key in keys]
        known = {row: result for row, (hit, result) in enumerate(found) if hit}
        missing = [row for row in range(len(keys)) if row not in known]
        if not self.rowwise:
            return [missing] if missing else [], known
        groups: dict[Any, list[int]] = {}
        for row in missing:
            groups.setdefault(keys[row] or row, []).append(row)
        return list(groups.values()), known

    def _expand(self, groups: list[list[int]], outcomes: list[Outcome]) -> list[tuple[list[int], Outcome]]:
        if not self.rowwise:
            return list(zip(groups, outcomes, strict=True))
        return [([row], outcome) for rows, outcome in zip(groups, outcomes, strict=True) for row in rows]

    def _job(
        self, runtime: RewardRuntime, columns: Mapping[str, Any], groups: list[list[int]], arguments: Arguments
    ) -> Job:
        sent = [group[:1] for group in groups] if self.rowwise else groups
        calls = [
            ({name: [values[row] for row in rows] for name, values in columns.items()}, len(rows)) for rows in sent
        ]
        return Job(
            shipment=self.shipment,
            calls=calls,
            deadline=self.deadline or runtime.settings.deadline,
            sandbox=self.sandbox,
            allow_unsandboxed=self.allow_unsandboxed,
            state=pickled_state(arguments.get("trainer_state")),
            wants_logs=arguments.get("log_metric") is not None,
        )

    def _rewards(self, outcome: Outcome, group: list[int], counts: dict[str, int]) -> list[float | None]:
        if outcome.kind == "ok":
            try:
                return checked_rewards(outcome.reply.get("rewards"), len(group))
            except (TypeError, ValueError) as error:
                outcome = Outcome("error", message=f"its worker answered nonsense ({error})")
        return [self.by_policy(outcome, row, counts) for row in group]

    def by_policy(self, outcome: Outcome, row: int, counts: dict[str, int]) -> float | None:
        """Count a row that has no reward of its own, and return what it gets instead.

        Raises:
            RewardError: the policy says so.
        """
        counts[_COUNTED[outcome.kind]] += 1
        policy = self.on_error if outcome.kind == "error" else self.on_kill
        if policy == "raise":
            error = RewardError(
                f"Reward {self.shipment.name!r} failed on row {row} of this call: {outcome.message}\nCorrect the function, "
                "or let such rows be left out with on_error='skip' (on_kill for deadlines and limits)."
            )
            error.row = row
            raise error
        return None if policy == "skip" else float(policy)

"""One run: its files, its journal and its steps. Use `TrainingFreeGRPO`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trl_grpo_ext.experience import ExperienceLibrary
from trl_grpo_ext.training_free.budget import BudgetReached, Meter
from trl_grpo_ext.training_free.cache import CallCache, content_key
from trl_grpo_ext.training_free.calls import Caller
from trl_grpo_ext.training_free.changes import change_library, domain_lessons, texts
from trl_grpo_ext.training_free.config import TrainingFreeConfig
from trl_grpo_ext.training_free.problems import Problem, batches
from trl_grpo_ext.training_free.prompts import PROMPTS_VERSION
from trl_grpo_ext.training_free.protocol import Backend
from trl_grpo_ext.training_free.report import Progress, Report, pending_of, step_reports
from trl_grpo_ext.training_free.state import RunChangedError, RunState
from trl_grpo_ext.training_free.steps import Context, decide_step
from trl_grpo_ext.training_free.verifier import Verifier

OnProgress = Callable[[Progress], None]


def settings_of(
    config: TrainingFreeConfig,
    policy: Backend,
    reflector: Backend,
    reward: str,
    problems: Sequence[Problem],
    held_out: Sequence[Problem],
) -> dict[str, Any]:
    """Return everything that a resume may not change."""
    return {
        "config": config.fixed(),
        "policy": policy.name,
        "reflector": reflector.name,
        "reward": reward,
        "prompts_version": PROMPTS_VERSION,
        "problems": _digest(problems),
        "held_out": _digest(held_out),
    }


def _digest(problems: Sequence[Problem]) -> dict[str, Any]:
    return {"rows": len(problems), "digest": content_key([problem.id for problem in problems])[:16]}


class Run:
    """The steps of one `train` call.

    Args:
        config: the settings.
        policy: the model that is taught.
        reflector: the model that reflects.
        reward_model: see `Verifier`.
        problems: to learn from.
        held_out: for the gate; empty without one.
        library: what is changed.
        path: of the run's file; None keeps it in memory.
        on_progress: called after each call of a model and each step.

    Raises:
        RunChangedError: the file holds a run with other settings.
        RunBusyError: another process has it open.
        ValueError: a reward that there is not, or prices that lack a model.
    """

    def __init__(
        self,
        config: TrainingFreeConfig,
        policy: Backend,
        reflector: Backend,
        reward_model: Any,
        problems: Sequence[Problem],
        held_out: Sequence[Problem],
        library: ExperienceLibrary,
        path: Path | None,
        on_progress: OnProgress | None,
    ) -> None:
        config.budget.check_models([policy.name, reflector.name])
        self.config, self.library, self._on_progress = config, library, on_progress
        self.state = RunState(path)
        self.cache = CallCache(path)
        try:
            gate = config.gate
            hidden = () if config.given_ground_truth else config.answer_columns
            bounds = {} if gate is None else {"low": gate.low, "high": gate.high}
            verifier = Verifier(reward_model, self.cache, hidden, **bounds)
            verifier.check([*problems, *held_out])
            settings = settings_of(config, policy, reflector, verifier.identity, problems, held_out)
            self.fingerprint = self.state.begin(settings)
        except BaseException:
            self.close()
            raise
        self.meter = Meter(config.budget, self.cache.spent(config.budget))
        arguments = (config.num_train_epochs, config.seed, config.shuffle)
        self.batches = batches(problems, config.batch_size, *arguments)
        callers = [
            Caller(model, self.cache, self.meter, config.max_attempts, self._show) for model in (policy, reflector)
        ]
        by_id = {problem.id: problem for problem in problems}
        self.context = Context(config, callers[0], callers[1], verifier, held_out, by_id, len(self.batches))
        self._step, self._rewards = 0, tuple(self.report("running", "").rewards)

    def close(self) -> None:
        """Close the run's file."""
        self.state.close()
        self.cache.close()

    def _show(self) -> None:
        if self._on_progress is not None:
            size = self.library.lesson_count()
            steps = max(len(self.batches), self._step + 1)
            self._on_progress(Progress(self._step, steps, replace(self.meter.spent), size, self._rewards))

    def train(self) -> Report:
        """Do the steps that are not done; returns the report. A reached budget stops, and is no error.

        Raises:
            BackendError: a model is not there.
            RunChangedError: something else has changed the library while a step was under way.
        """
        again = self.state.finished
        try:
            for step, batch in enumerate(self.batches):
                self._ensure(step, batch)
            extra = len(self.batches)
            while self.state.load(extra) is not None:
                self._ensure(extra, [])
                extra += 1
            # Once per call of `train`, after the last step: what is pending may succeed now.
            if self._pending() and (again or extra == len(self.batches)):
                self.state.finished = False
                self._ensure(extra, [])
        except BudgetReached as reached:
            return self.report("stopped", f"The budget is reached: {reached}. Raise it and train again to continue.")
        self.state.finished = True
        pending = len(self._pending())
        if pending:
            reason = f"{pending} comparisons are pending; train again to try them once more."
            return self.report("degraded", reason)
        return self.report("finished", "")

    def _pending(self) -> list[dict[str, Any]]:
        return pending_of(self.state.records())

    def _ensure(self, step: int, batch: Sequence[Problem]) -> None:
        self._step = step
        known = self.state.load(step)
        if known is None:
            base = self.library.version
            record = decide_step(self.context, self.library, step, batch, self.state.records())
            self.state.save(step, base, record)
            known = (base, record, False)
        base, record, done = known
        if not done:
            self._commit(step, base, record)
            if record["report"]["rollouts"]:
                self._rewards += (record["report"]["reward"],)
        self._show()

    def _commit(self, step: int, base: int, record: Mapping[str, Any]) -> None:
        cause = f"train-free {self.fingerprint} step {step}"
        if not self._committed(step, base, cause):
            change_library(self.library, step, record, self.config.domain, cause)
        self.state.mark_done(step)

    def _committed(self, step: int, base: int, cause: str) -> bool:
        """Whether the library has the step already: its process was killed before it could say so."""
        if self.library.version == base:
            return False
        if any(item.version == base + 1 and item.cause == cause for item in self.library.history()):
            return True
        raise RunChangedError(
            f"step {step} was decided for version {base} of {self.library.name}, which is at version "
            f"{self.library.version} now: something else has changed it. Roll it back with rollback({base}), or start a "
            "new run in another output_dir."
        )

    def report(self, status: str, reason: str) -> Report:
        """Return the report of the steps that are done."""
        records = self.state.records()
        return Report(
            status,
            reason,
            self.fingerprint,
            self.config.gate is not None,
            step_reports(records),
            pending_of(records),
            self.meter.spent.as_dict(),
            texts(domain_lessons(self.library, self.config.domain)),
        )

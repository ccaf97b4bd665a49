"""A reward function that runs in worker processes, in TRL's calling convention."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from trl_grpo_ext.rewards.runtime.ahead import Ahead, rewards_after
from trl_grpo_ext.rewards.runtime.arguments import split_columns
from trl_grpo_ext.rewards.runtime.capabilities import sandbox_capabilities, unavailable_message
from trl_grpo_ext.rewards.runtime.errors import SandboxUnavailable
from trl_grpo_ext.rewards.runtime.functions import RewardFunction, Shipment, ship
from trl_grpo_ext.rewards.runtime.jobs import Outcome
from trl_grpo_ext.rewards.runtime.policies import Policy, check_deadline, check_policy, name_of
from trl_grpo_ext.rewards.runtime.pool import RewardRuntime, default_runtime
from trl_grpo_ext.rewards.runtime.rows import checked_rewards
from trl_grpo_ext.rewards.runtime.scoring import Scored, Scorer


class IsolatedReward:
    """Runs a reward function outside the trainer's process, each row under a deadline.

    `reward(prompts=..., completions=..., <column>=..., trainer_state=..., log_extra=..., log_metric=...)` returns one
    number or None per completion; the range is that of the function. The function is called with lists of one row
    (`rowwise=True`), so that one row's failure is one row's failure. It gets every column; `prompts` holds the column
    `plain_prompt` where there is one. `trainer_state` is a copy of its plain values; what the function gives to
    `log_extra` and `log_metric` is replayed in the trainer (metrics as means over the rows). An `async def` function
    is awaited in the worker. `environments` stay in the trainer.

    A trainer's isolated rewards run at the same time: the first that is called starts the work of those after it.
    Equal rows of one call are run once. Results are reused for rows with equal arguments in later calls, except where the function read `trainer_state`, logged something,
    failed, or the row holds objects such as images. Counters per function: `reward.stats()`, and in the logged metrics
    `reward_runtime/<name>/...` where TRL passes `log_metric` (TRL >= 1.0).

    Args:
        func: the function in TRL's convention, or its name: a built-in, `path/to/file.py:function`, `module:function`.
        name: name in the logs; by default the function's.
        runtime: the workers; by default those that all such rewards of this process share.
        on_error: what a row becomes whose call raises: "skip" (None: no advantage, no share in the baseline; stock TRL
            0.24 counts None as 0), "raise" (`RewardError`), or a number.
        on_kill: the same for a row that ran into the deadline or a limit; by default as `on_error`.
        deadline: seconds per call; by default the runtime's.
        imports: modules that the function imports only when it is called (`"math_verify"`): the worker imports them
            beforehand, so that in a new worker the first row's deadline is not spent on them.
        rowwise: False for functions that compare rows: one call with all rows, one deadline, one failure for all; not
            cached.
        stateful: True for functions whose result depends on more than their arguments: every row is run. Each worker has its
            own copy of the function, and its state is lost when the worker is replaced.
        sandbox: True for functions that run the model's programs: each row in a fork of its own, in a worker without
            network, other processes and writable files; refused where the kernel does not allow that. A program that
            the function runs inside its own process (`exec`) can still choose its own row's reward: start it with
            `subprocess` and judge its output.
        allow_unsandboxed: run such a function all the same, with a logged warning.
        in_process: True runs the function in the trainer, all rows in one call, without deadline, sandbox and cache:
            for rewards that need the GPU. An exception in it follows `on_error`.

    Raises:
        ValueError: a wrong argument, or two that exclude each other.
        TypeError: the function can't be pickled.
        SandboxUnavailable: `sandbox=True` can't be had.
    """

    def __init__(
        self,
        func: RewardFunction | str,
        *,
        name: str | None = None,
        runtime: RewardRuntime | None = None,
        on_error: Policy = "skip",
        on_kill: Policy | None = None,
        deadline: float | None = None,
        imports: Sequence[str] = (),
        rowwise: bool = True,
        stateful: bool = False,
        sandbox: bool = False,
        allow_unsandboxed: bool = False,
        in_process: bool = False,
    ) -> None:
        check_policy("on_error", on_error)
        check_policy("on_kill", on_error if on_kill is None else on_kill)
        check_deadline(deadline)
        if isinstance(imports, str):
            raise ValueError(f"IsolatedReward: imports must be a list of module names, not {imports!r}.")
        if in_process and (sandbox or imports or isinstance(func, str) or deadline is not None):
            raise ValueError(
                "IsolatedReward: in_process=True takes a callable, and neither sandbox=True, imports nor a "
                "deadline, which can't be enforced in the trainer's own process; leave one of them out."
            )
        self._shipment = (
            Shipment(name_of(func, name), "", b"", "")
            if in_process
            else replace(ship(func, name), imports=tuple(imports))
        )
        self.__name__ = self._shipment.name
        self._in_process = in_process
        self._runtime = runtime
        self._scorer = Scorer(
            shipment=self._shipment,
            on_error=on_error,
            on_kill=on_error if on_kill is None else on_kill,
            deadline=deadline,
            rowwise=rowwise,
            cached=rowwise and not stateful,
            sandbox=sandbox,
            allow_unsandboxed=allow_unsandboxed,
        )
        self._ahead: Ahead[Scored] | None = None
        if not isinstance(func, str):
            # check_reward_columns reads the function's own arguments through this.
            self.__wrapped__ = func
            self.__doc__ = func.__doc__
        self._check_sandbox()

    def _check_sandbox(self) -> None:
        if self._scorer.sandbox and not self._scorer.allow_unsandboxed:
            capabilities = sandbox_capabilities(self.runtime.settings)
            if not capabilities.sandbox:
                raise SandboxUnavailable(unavailable_message(self.__name__, capabilities))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"_ahead": None}
        if not self._in_process:
            # The function itself may have no importable name; its shipment has its code.
            state.pop("__wrapped__", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._shipment.payload:
            import cloudpickle

            self.__wrapped__ = cloudpickle.loads(self._shipment.payload)

    @property
    def runtime(self) -> RewardRuntime:
        """The workers that this reward uses."""
        return self._runtime or default_runtime()

    def stats(self) -> dict[str, int]:
        """Return this function's counters: rows, errors, timeouts, kills, skips, cache_hits."""
        self.runtime.count(self.__name__)
        return self.runtime.stats()[self.__name__]

    def __call__(
        self, prompts: Sequence[Any] | None = None, completions: Sequence[Any] = (), **kwargs: Any
    ) -> list[float | None]:
        """Return one reward per completion; TRL's arguments.

        Raises:
            RewardError: a row failed and the policy is "raise".
            RewardLoadError: the function can't be loaded in a worker.
            ValueError: a column has not one value per completion.
        """
        arguments = {"prompts": prompts, "completions": completions, **kwargs}
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.is_for(arguments):
            return self._finish(ahead.result(), arguments)
        if ahead is not None:
            ahead.cancel()
        return self._call_with_others(rewards_after(self), arguments)

    def _call_with_others(self, others: Sequence[Any], arguments: dict[str, Any]) -> list[float | None]:
        """Run this reward here, and those that come after it in threads, each in workers."""
        started = [other for other in others if isinstance(other, IsolatedReward) and other._begin(arguments)]
        try:
            return self._finish(Scored.of(self._score, arguments), arguments)
        except BaseException:
            for other in started:
                other._abandon()
            raise

    def _begin(self, arguments: dict[str, Any]) -> bool:
        """Start the work of a call that is to come, and say so; one that runs in the trainer has to wait its turn."""
        if self._in_process or (self._ahead is not None and self._ahead.is_for(arguments)):
            return False
        self._abandon()
        self._ahead = Ahead(arguments, lambda stop: Scored.of(self._score, arguments, stop))
        return True

    def _abandon(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()

    def _score(
        self, arguments: Mapping[str, Any], scored: Scored, stop: threading.Event | None = None
    ) -> list[float | None]:
        if self._in_process:
            return self._call_here(arguments, scored.counts)
        return self._scorer.score(self.runtime, arguments, scored, stop)

    def _finish(self, scored: Scored, arguments: Mapping[str, Any]) -> list[float | None]:
        """Tell the trainer what was logged and counted, and return the rewards or raise the error."""
        self.runtime.count(self.__name__, **scored.counts)
        log_metric = arguments.get("log_metric")
        if log_metric is not None:
            for key, number in scored.counts.items():
                log_metric(f"reward_runtime/{self.__name__}/{key}", float(number))
        if scored.error is not None:
            raise scored.error
        scored.replay(arguments)
        return scored.rewards

    def _call_here(self, arguments: Mapping[str, Any], counts: dict[str, int]) -> list[float | None]:
        count = counts["rows"]
        columns = split_columns(count, arguments)
        live = {name: arguments[name] for name in arguments if name not in columns and arguments[name] is not None}
        try:
            return checked_rewards(self.__wrapped__(**columns, **live), count)
        except Exception as error:
            outcome = Outcome("error", message=f"{type(error).__name__}: {error}")
            if self._scorer.on_error == "raise":
                counts["errors"] += count
                raise
            return [self._scorer.by_policy(outcome, row, counts) for row in range(count)]

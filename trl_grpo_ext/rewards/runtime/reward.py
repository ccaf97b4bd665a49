"""A reward function that runs in worker processes, in TRL's calling convention."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trl_grpo_ext.rewards.errors import RewardError
from trl_grpo_ext.rewards.runtime.arguments import pickled_state, replay_extra, replay_metrics, rows_of, split_columns
from trl_grpo_ext.rewards.runtime.cache import row_key
from trl_grpo_ext.rewards.runtime.capabilities import sandbox_capabilities, unavailable_message
from trl_grpo_ext.rewards.runtime.errors import SandboxUnavailable
from trl_grpo_ext.rewards.runtime.functions import RewardFunction, Shipment, ship
from trl_grpo_ext.rewards.runtime.jobs import Job, Outcome
from trl_grpo_ext.rewards.runtime.policies import Policy, check_deadline, check_policy, name_of
from trl_grpo_ext.rewards.runtime.pool import COUNTERS, RewardRuntime, default_runtime
from trl_grpo_ext.rewards.runtime.rows import checked_rewards

_COUNTED = {"error": "errors", "timeout": "timeouts", "killed": "kills"}


class IsolatedReward:
    """Runs a reward function outside the trainer's process, each row under a deadline.

    `reward(prompts=..., completions=..., <column>=..., trainer_state=..., log_extra=..., log_metric=...)` returns one
    number or None per completion; the range is that of the function. The function is called with lists of one row
    (`rowwise=True`), so that one row's failure is one row's failure. It gets every column; `prompts` holds the column
    `plain_prompt` where there is one. `trainer_state` is a copy of its plain values; what the function gives to
    `log_extra` and `log_metric` is replayed in the trainer (metrics as means over the rows). An `async def` function
    is awaited in the worker. `environments` stay in the trainer.

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
        self._on_error = on_error
        self._on_kill = on_error if on_kill is None else on_kill
        self._deadline = deadline
        self._rowwise = rowwise
        self._cached = rowwise and not stateful
        self._sandbox = sandbox
        self._allow_unsandboxed = allow_unsandboxed
        if not isinstance(func, str):
            # check_reward_columns reads the function's own arguments through this.
            self.__wrapped__ = func
            self.__doc__ = func.__doc__
        self._check_sandbox()

    def _check_sandbox(self) -> None:
        if self._sandbox and not self._allow_unsandboxed:
            capabilities = sandbox_capabilities(self.runtime.settings)
            if not capabilities.sandbox:
                raise SandboxUnavailable(unavailable_message(self.__name__, capabilities))

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
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
        counts = dict.fromkeys(COUNTERS, 0)
        counts["rows"] = len(completions)
        arguments = {"prompts": prompts, "completions": completions, **kwargs}
        try:
            if self._in_process:
                return self._call_here(arguments, counts)
            return self._call_there(arguments, counts)
        finally:
            self._report(counts, kwargs.get("log_metric"))

    def _report(self, counts: dict[str, int], log_metric: Callable[..., Any] | None) -> None:
        self.runtime.count(self.__name__, **counts)
        if log_metric is not None:
            for key, number in counts.items():
                log_metric(f"reward_runtime/{self.__name__}/{key}", float(number))

    def _call_here(self, arguments: dict[str, Any], counts: dict[str, int]) -> list[float | None]:
        count = counts["rows"]
        columns = split_columns(count, arguments)
        live = {name: arguments[name] for name in arguments if name not in columns and arguments[name] is not None}
        try:
            return checked_rewards(self.__wrapped__(**columns, **live), count)
        except Exception as error:
            outcome = Outcome("error", message=f"{type(error).__name__}: {error}")
            if self._on_error == "raise":
                counts["errors"] += count
                raise
            return [self._by_policy(outcome, row, counts) for row in range(count)]

    def _call_there(self, arguments: dict[str, Any], counts: dict[str, int]) -> list[float | None]:
        count = counts["rows"]
        columns = split_columns(count, arguments)
        keys = [row_key(self._shipment.version, row) if self._cached else None for row in rows_of(columns, count)]
        groups, known = self._plan(keys)
        outcomes = self._expand(groups, self.runtime.run(self._job(columns, groups, arguments)))
        rewards = [known.get(row) for row in range(count)]
        for rows, outcome in outcomes:
            for row, reward in zip(rows, self._rewards(outcome, rows, counts), strict=True):
                rewards[row] = reward
                if outcome.may_be_kept:
                    self.runtime.cache.store(keys[row], reward)
        counts["cache_hits"] = len(known) + (len(outcomes) - len(groups))
        self._replay(outcomes, arguments, count)
        counts["skips"] = sum(reward is None for reward in rewards)
        return rewards

    def _plan(self, keys: list[str | None]) -> tuple[list[list[int]], dict[int, float | None]]:
        """Return the rows of each call to make (equal rows share one), and the results that are known already."""
        found = [self.runtime.cache.find(key) for key in keys]
        known = {row: result for row, (hit, result) in enumerate(found) if hit}
        missing = [row for row in range(len(keys)) if row not in known]
        if not self._rowwise:
            return [missing] if missing else [], known
        groups: dict[Any, list[int]] = {}
        for row in missing:
            groups.setdefault(keys[row] or row, []).append(row)
        return list(groups.values()), known

    def _expand(self, groups: list[list[int]], outcomes: list[Outcome]) -> list[tuple[list[int], Outcome]]:
        if not self._rowwise:
            return list(zip(groups, outcomes, strict=True))
        return [([row], outcome) for rows, outcome in zip(groups, outcomes, strict=True) for row in rows]

    def _job(self, columns: Mapping[str, Any], groups: list[list[int]], arguments: Mapping[str, Any]) -> Job:
        sent = [group[:1] for group in groups] if self._rowwise else groups
        calls = [
            ({name: [values[row] for row in rows] for name, values in columns.items()}, len(rows)) for rows in sent
        ]
        return Job(
            shipment=self._shipment,
            calls=calls,
            deadline=self._deadline or self.runtime.settings.deadline,
            sandbox=self._sandbox,
            allow_unsandboxed=self._allow_unsandboxed,
            state=pickled_state(arguments.get("trainer_state")),
            wants_logs=arguments.get("log_metric") is not None,
        )

    def _rewards(self, outcome: Outcome, group: list[int], counts: dict[str, int]) -> list[float | None]:
        if outcome.kind == "ok":
            try:
                return checked_rewards(outcome.reply.get("rewards"), len(group))
            except (TypeError, ValueError) as error:
                outcome = Outcome("error", message=f"its worker answered nonsense ({error})")
        return [self._by_policy(outcome, row, counts) for row in group]

    def _by_policy(self, outcome: Outcome, row: int, counts: dict[str, int]) -> float | None:
        counts[_COUNTED[outcome.kind]] += 1
        policy = self._on_error if outcome.kind == "error" else self._on_kill
        if policy == "raise":
            error = RewardError(
                f"Reward {self.__name__!r} failed on row {row} of this call: {outcome.message}\nCorrect the function, "
                "or let such rows be left out with on_error='skip' (on_kill for deadlines and limits)."
            )
            error.row = row
            raise error
        return None if policy == "skip" else float(policy)

    def _replay(self, outcomes: Sequence[tuple[list[int], Outcome]], arguments: Mapping[str, Any], count: int) -> None:
        if arguments.get("log_extra") is not None:
            calls = [(outcome.reply, rows) for rows, outcome in outcomes]
            replay_extra(calls, count, arguments["log_extra"])
        if arguments.get("log_metric") is not None:
            replay_metrics([outcome.reply for _, outcome in outcomes], arguments["log_metric"])

"""Reward functions by name, with those that others wrote in worker processes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_grpo_ext.rewards.adapters import (
    OpenRLHFReward,
    RubricReward,
    ScalarReward,
    SwiftReward,
    TRLReward,
    VerlReward,
)
from trl_grpo_ext.rewards.loading import find_reward_file
from trl_grpo_ext.rewards.registry import (
    RewardSpec,
    check_distinct_names,
    is_file_spec,
    resolve_reward,
    third_party_rewards,
)
from trl_grpo_ext.rewards.runtime import IsolatedReward, RewardRuntime

RewardFunction = Callable[..., Any]

# Adapters that only call somebody's function, unlike those of services (their own deadlines) and models (the GPU).
_FUNCTION_ADAPTERS = (OpenRLHFReward, RubricReward, ScalarReward, SwiftReward, TRLReward, VerlReward)
_OWN_PACKAGE = __name__.partition(".")[0]


def _belongs_in_trainer(reward: RewardFunction) -> bool:
    """Objects of this package have deadlines, metrics or state of their own; all but adapters of plain functions."""
    own = type(reward).__module__.partition(".")[0] == _OWN_PACKAGE
    return own and not isinstance(reward, _FUNCTION_ADAPTERS)


@dataclass(frozen=True)
class RewardIsolation:
    """How reward functions that others wrote are run.

    Args:
        timeout: seconds for one call with all its rows; then the worker is killed and the rows follow `errors`. 60 by
            default. Not enforced with `in_process`.
        errors: what the rows of a call become that raises or is killed: "raise" (default) stops with the function's
            own traceback; "skip" gives None (no advantage, no share in the baseline); a number is given as it is.
        in_process: True runs them in the trainer: for functions that need the GPU or the trainer's live state.
        network: True lets their workers reach the network and see the environment's secrets; False by default.
        memory_limit: bytes of address space of a worker; 16 GiB by default.

    Raises:
        ValueError: `timeout` is not above 0.
    """

    timeout: float = 60.0
    errors: str | float = "raise"
    in_process: bool = False
    network: bool = False
    memory_limit: int = 16 << 30
    _runtimes: dict[str, RewardRuntime] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, not {self.timeout!r}.")

    def _runtime(self, source: str) -> RewardRuntime:
        """One worker for each file or distribution, so that its functions share their module's state."""
        if source not in self._runtimes:
            self._runtimes[source] = RewardRuntime(
                workers=1, deadline=self.timeout, memory_limit=self.memory_limit, network=self.network
            )
        return self._runtimes[source]

    def _isolated(self, reward: RewardFunction, spec: str | None, source: str) -> RewardFunction:
        policy: Any = self.errors
        if self.in_process:
            return IsolatedReward(reward, on_error=policy, in_process=True)
        isolated = IsolatedReward(
            spec or reward,
            name=reward.__name__,
            runtime=self._runtime(source),
            on_error=policy,
            deadline=self.timeout,
            # All rows in one call, as TRL calls it: the function may compare them.
            rowwise=False,
        )
        # check_reward_columns reads the function's own arguments through this.
        isolated.__wrapped__, isolated.__doc__ = reward, reward.__doc__
        return isolated

    def resolve(self, spec: RewardSpec, search_directories: Iterable[str | Path] = ()) -> RewardFunction:
        """Return one reward function, isolated when it comes from a file or from another distribution.

        Raises:
            ValueError: as `resolve_reward_funcs`; an async function with `in_process`.
            TypeError: a function of another distribution that can't be sent to a worker.
        """
        reward = resolve_reward(spec, search_directories)
        if not isinstance(spec, str) or _belongs_in_trainer(reward):
            return reward
        if is_file_spec(spec):
            path, _, function = spec.rpartition(":")
            file = find_reward_file(path, search_directories)
            return self._isolated(reward, f"{file}:{function}", str(file))
        entry = third_party_rewards().get(spec)
        return reward if entry is None else self._isolated(reward, None, entry.value.partition(":")[0])


def isolate_reward_funcs(
    specs: RewardSpec | Iterable[RewardSpec],
    search_directories: str | Path | Iterable[str | Path] = (),
    isolation: RewardIsolation | None = None,
) -> list[RewardFunction]:
    """`resolve_reward_funcs`, with what others wrote in worker processes under a deadline (`IsolatedReward`).

    A function of a file, or of another distribution, is called with all rows at once in a worker that has imported its
    file: without network, with a scratch folder as working directory and no other writable file, with the arguments
    that TRL gives it (`trainer_state` as a copy; `log_metric` and `log_extra` are replayed). Adapters of such functions
    go with them. What stays in the trainer: the built-ins, callables given as they are, and objects of this package
    in a file that have deadlines or state of their own (`IsolatedReward`, composites, guards, judges, services,
    classifiers).

    Args:
        specs, search_directories: as in `resolve_reward_funcs`.
        isolation: deadline, error policy and opt-outs; `RewardIsolation()` by default.

    Returns:
        The functions, in the order given.

    Raises:
        ValueError, TypeError: as `resolve_reward_funcs` and `RewardIsolation.resolve`.
    """
    isolation = isolation or RewardIsolation()
    requested = [specs] if isinstance(specs, str) or callable(specs) else list(specs)
    folders = [search_directories] if isinstance(search_directories, (str, Path)) else list(search_directories)
    rewards = [isolation.resolve(spec, folders) for spec in requested]
    check_distinct_names(rewards)
    return rewards

"""The reward of rollouts: any reward function of this package or of TRL, or a function of (query, response)."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_grpo_ext.rewards import RewardAdapter, ScalarReward, TRLReward, resolve_reward_funcs
from trl_grpo_ext.training_free.cache import CallCache, content_key
from trl_grpo_ext.training_free.problems import Problem

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_PASSED = frozenset({"prompts", "completions", "completion_ids"})


@dataclass(frozen=True)
class Row:
    """What is scored: a response to a problem, and the group of responses that it is compared with."""

    problem: Problem
    text: str
    group: str


def _takes_completions(func: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(func).parameters
    except (TypeError, ValueError):
        return True
    kinds = {item.kind for item in parameters.values()}
    return bool(_PASSED & set(parameters)) or kinds == {inspect.Parameter.VAR_KEYWORD}


def _adapted(spec: Any) -> Any:
    rewards = resolve_reward_funcs(spec)
    if len(rewards) != 1:
        raise ValueError(
            f"reward_model must be one reward, not {len(rewards)}; combine them with trl_grpo_ext.rewards.composition."
        )
    reward = rewards[0]
    if isinstance(reward, RewardAdapter):
        return reward
    return TRLReward(reward) if _takes_completions(reward) else ScalarReward(reward)


def reward_name(spec: Any) -> str:
    """Return the name of a reward.

    Raises:
        ValueError: not one reward function, or an unknown name.
    """
    return _adapted(spec).__name__


def reward_identity(spec: Any) -> str:
    """Return the name of a reward, and a hash of its text where its user wrote it: `solved sha256:6b86b273ff34`.

    For the fingerprint of a run and for kept rewards. The text is that of the whole file for `file.py:function`, and of
    the function itself for a function; what either calls elsewhere is not in it.

    Raises:
        ValueError: see `reward_name`.
    """
    name, text = reward_name(spec), _text_of(spec)
    return f"{name} sha256:{hashlib.sha256(text).hexdigest()[:12]}" if text else name


def _text_of(spec: Any) -> bytes:
    if isinstance(spec, str):
        path, found, _ = spec.rpartition(".py:")
        return Path(f"{path}.py").expanduser().read_bytes() if found else b""
    try:
        return inspect.getsource(inspect.unwrap(spec)).encode()
    except (OSError, TypeError):
        return b""


class Verifier:
    """Scores rollouts, each call of the reward once: what it returned is kept, so a resume scores nothing twice.

    A reward that is given by name is made anew for every call, so that what it remembers (the window of
    self-consistency, for example) can't depend on where a run was interrupted. One that is given as an object is used
    as it is.

    Args:
        reward_model: the name of a reward, `file.py:function`, a reward function of TRL, or a function whose arguments
            are named query or prompt, response or completion, and columns.
        cache: where rewards are kept.
        hidden: columns that are withheld from the reward.
        low: the least reward that is allowed.
        high: the greatest.
    """

    def __init__(
        self,
        reward_model: Any,
        cache: CallCache,
        hidden: Sequence[str] = (),
        low: float = -math.inf,
        high: float = math.inf,
    ) -> None:
        self.name, self.identity = reward_name(reward_model), reward_identity(reward_model)
        self._spec, self._cache, self._hidden, self._low, self._high = reward_model, cache, hidden, low, high

    def check(self, problems: Sequence[Problem]) -> None:
        """Refuse a reward that can't be called on these problems, before a model is asked anything.

        Raises:
            ValueError: it needs a column that no problem has, or does not take every column that there is, or a column
                has the name of one of its own arguments.
        """
        columns = {name for problem in problems for name in problem.columns} - set(self._hidden)
        clash = sorted(columns & _PASSED)
        if clash:
            raise ValueError(
                f"the data has a column {clash[0]!r}, the name of an argument of every reward; rename it."
            )
        self._check_signature(columns)

    def _check_signature(self, columns: set[str]) -> None:
        try:
            parameters = inspect.signature(_adapted(self._spec)).parameters.values()
        except (TypeError, ValueError):
            return
        named = {item.name for item in parameters if item.kind in _NAMED}
        needed = {item.name for item in parameters if item.kind in _NAMED and item.default is inspect.Parameter.empty}
        if "completion_ids" in needed and "completions" not in named:
            raise ValueError(
                f"reward {self.name!r} reads token ids, which a chat model does not give; take one that reads the text."
            )
        missing = sorted(needed - columns - _PASSED)
        if missing:
            withheld = ", and given_ground_truth=False withholds it" if missing[0] in self._hidden else ""
            raise ValueError(
                f"reward {self.name!r} needs the column {missing[0]!r}, which the data has not{withheld}; the columns "
                f"are: {', '.join(sorted(columns)) or 'none'}."
            )
        refused = sorted((columns | _PASSED) - named)
        if refused and not any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters):
            raise ValueError(
                f"reward {self.name!r} does not take {refused[0]!r}, which every reward is given; add **kwargs to its "
                "arguments."
            )

    def __call__(self, rows: Sequence[Row]) -> list[float | None]:
        """Return a reward per row, None where it could not be judged.

        Raises:
            RewardError: the reward failed, and its policy is to raise.
            ValueError: a reward outside the range, or a reward that needs a column that the rows lack.
        """
        rewards: list[float | None] = [None] * len(rows)
        for numbers in _waves(rows):
            scored = self._once([rows[number] for number in numbers])
            for number, reward in zip(numbers, scored, strict=True):
                rewards[number] = reward
        return rewards

    def _once(self, rows: Sequence[Row]) -> list[float | None]:
        key = content_key(self.identity, sorted(self._hidden), [(row.problem.id, row.text) for row in rows])
        known = self._cache.rewards(key)
        if known is None:
            known = [None if reward is None else float(reward) for reward in self._call(rows)]
            self._cache.put_rewards(key, known)
        outside = next(
            (reward for reward in known if reward is not None and not self._low <= reward <= self._high), None
        )
        if outside is not None:
            raise ValueError(
                f"reward {self.name!r} gave {outside}, outside the gate's range [{self._low}, {self._high}]; set low and "
                "high of the gate to the range of the reward."
            )
        return known

    def _call(self, rows: Sequence[Row]) -> list[float | None]:
        names = dict.fromkeys(name for row in rows for name in row.problem.columns if name not in self._hidden)
        columns = {name: [row.problem.columns.get(name) for row in rows] for name in names}
        prompts = [row.problem.prompt for row in rows]
        completions = [_as_completion(row.problem.prompt, row.text) for row in rows]
        return _adapted(self._spec)(prompts=prompts, completions=completions, **columns)


def _as_completion(prompt: Any, text: str) -> Any:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _waves(rows: Sequence[Row]) -> list[list[int]]:
    """Row numbers such that within one list the rows of equal prompts are those of one group.

    Rewards that compare the rollouts of a prompt find them by the prompt.
    """
    waves: list[list[int]] = []
    groups: dict[str, dict[str, int]] = {}
    for number, row in enumerate(rows):
        held = groups.setdefault(repr(row.problem.prompt), {})
        wave = held.setdefault(row.group, len(held))
        if wave == len(waves):
            waves.append([])
        waves[wave].append(number)
    return waves

"""TRL's own convention, with the length check, the error policy, and async functions on every TRL version."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from trl_grpo_ext.rewards.adapters.base import ErrorPolicy, RewardAdapter
from trl_grpo_ext.rewards.adapters.batch import RewardBatch
from trl_grpo_ext.rewards.adapters.calls import as_list, call_once, callable_name
from trl_grpo_ext.rewards.adapters.signatures import plain_signature


class TRLReward(RewardAdapter):
    """`func(prompts, completions, completion_ids, **columns) -> list[float | None]`, sync or async.

    TRL < 0.27 can't call async functions and fails on them with a TypeError; behind this adapter they work there. An
    async function behind it no longer runs at the same time as other async rewards, on any version.

    Args:
        func: a reward function of TRL. It gets exactly the keywords that TRL passes; `prompts` is the column
            `plain_prompt` where there is one.
        name: the function's own name by default.
        on_error: see `RewardAdapter`.

    Raises:
        ValueError: `on_error` is no policy.
    """

    def __init__(self, func: Callable[..., Any], *, name: str | None = None, on_error: ErrorPolicy = "raise") -> None:
        super().__init__(name or callable_name(func), on_error)
        self.func = func
        # Without a readable signature nothing more is known to be required.
        with suppress(TypeError, ValueError):
            self.__signature__ = plain_signature(func)

    def outcomes(self, batch: RewardBatch) -> list[Any]:
        """Call the function once for all rows."""
        result = call_once(
            self.func,
            prompts=batch.prompts,
            completions=batch.completions,
            completion_ids=batch.completion_ids,
            **batch.columns,
            **batch.context,
        )
        return as_list(self.__name__, result, batch.size)

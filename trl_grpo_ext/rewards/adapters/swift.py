"""ms-swift's outcome reward models: `ORM` and `AsyncORM`."""

from collections.abc import Callable
from typing import Any

from trl_grpo_ext.rewards.adapters.base import ErrorPolicy, RewardAdapter
from trl_grpo_ext.rewards.adapters.batch import RewardBatch
from trl_grpo_ext.rewards.adapters.calls import as_list, call_once, callable_name


class SwiftReward(RewardAdapter):
    """`ORM.__call__(completions: list[str], **kwargs) -> list[float]`, also `async` (AsyncORM).

    Completions come as texts and by position; the dataset's columns and `trainer_state` by name. TRL's `log_extra` and
    `log_metric`, which ms-swift does not know, are held back.

    Args:
        orm: an instance, or a class, which is instantiated without arguments, once.
        name: the class's name by default.
        on_error: see `RewardAdapter`.

    Raises:
        ValueError: `on_error` is no policy.
        TypeError: the class needs arguments; pass an instance.
    """

    def __init__(self, orm: Callable[..., Any], *, name: str | None = None, on_error: ErrorPolicy = "raise") -> None:
        super().__init__(name or callable_name(orm), on_error)
        self.orm = orm() if isinstance(orm, type) else orm

    def outcomes(self, batch: RewardBatch) -> list[Any]:
        """Call the ORM once for all rows."""
        state = {key: value for key, value in batch.context.items() if key == "trainer_state"}
        result = call_once(self.orm, batch.responses(), **batch.columns, **state)
        return as_list(self.__name__, result, batch.size)

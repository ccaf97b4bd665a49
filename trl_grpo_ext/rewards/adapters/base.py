"""What all adapters share: TRL's calling convention, the length check, the error policy and the counts."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from trl_grpo_ext.rewards.adapters.batch import RewardBatch
from trl_grpo_ext.rewards.adapters.calls import as_reward, check_length
from trl_grpo_ext.rewards.adapters.signatures import required_signature
from trl_grpo_ext.rewards.errors import RewardError

ErrorPolicy = str | float


def check_error_policy(on_error: ErrorPolicy) -> ErrorPolicy:
    """Return the policy when it is one.

    Raises:
        ValueError: neither "raise", nor "skip", nor a finite number.
    """
    number = isinstance(on_error, (int, float)) and not isinstance(on_error, bool) and math.isfinite(on_error)
    if on_error in ("raise", "skip") or number:
        return on_error
    raise ValueError(f'on_error must be "raise", "skip" or a finite number to give instead, not {on_error!r}.')


class RewardAdapter(ABC):
    """A reward of another convention as a reward function of TRL, synchronous on every TRL version.

    A subclass computes one outcome per row; this class makes rewards of them. An outcome is a number, None (no reward
    for this row), or an exception. NaN, infinity and anything that is not a number are errors too. Adapters can be
    pickled where what they adapt can.

    Args:
        name: the name under which TRL logs the reward.
        on_error: what a row gets that fails: "raise" (default) stops with `RewardError`; "skip" gives None, which is
            advantage 0 and no share in the group's baseline (on TRL < 1.6 with `rewards.skips`); a number is given as
            it is. When a call for all rows fails, all rows do. A wrong number of results always raises ValueError.
        required: dataset columns that every call needs, for `check_reward_columns`.

    Attributes:
        errors: rows that failed so far, in this process.
        skips: rows that got None so far, for either reason.
        last_metrics: name and value of every metric of the last call: `rewards/<name>/errors`,
            `rewards/<name>/skips`, and those of the convention. TRL >= 1.0 logs them (means over calls and ranks); on
            older ones `composition.RewardMetricsCallback` does.
        extras: one list of texts per row-wise detail of the last call; TRL >= 1.0 adds them to the completions table.
    """

    def __init__(self, name: str, on_error: ErrorPolicy = "raise", required: Iterable[str] = ()) -> None:
        self.__name__ = name
        self.on_error = check_error_policy(on_error)
        self.__signature__ = required_signature(required)
        self.errors = 0
        self.skips = 0
        self.last_metrics: dict[str, float] = {}
        self.extras: dict[str, list[str | None]] = {}

    @abstractmethod
    def outcomes(self, batch: RewardBatch) -> list[Any]:
        """Return one number, None or exception per row. May fill `last_metrics` and `extras`, empty at that time."""

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any
    ) -> list[float | None]:
        """Return one reward, or None, per completion.

        Args:
            prompts: one string or message list per row; the column `plain_prompt` stands in for it when there is one.
            completions: one string or message list per row.
            completion_ids: the completions' token ids.
            columns: the dataset's columns and TRL's own keywords.

        Raises:
            RewardError: a row failed and `on_error` is "raise".
            ValueError: a column is missing, or there is not one result per row. No policy covers these.
        """
        batch = RewardBatch.from_call(self.__name__, prompts, completions, completion_ids, columns)
        self.last_metrics, self.extras = {}, {}
        results = [as_reward(outcome) for outcome in check_length(self.__name__, self.outcomes(batch), batch.size)]
        failed = [row for row, result in enumerate(results) if isinstance(result, Exception)]
        self.errors += len(failed)
        if failed and self.on_error == "raise":
            self._raise(results, failed)
        rewards = [self._instead() if isinstance(result, Exception) else result for result in results]
        self._count(len(failed), rewards.count(None))
        self._log(batch)
        return rewards

    def _instead(self) -> float | None:
        return None if self.on_error == "skip" else float(self.on_error)

    def _raise(self, results: list[Any], failed: list[int]) -> None:
        error = results[failed[0]]
        everywhere = len(results) > 1 and all(result is error for result in results)
        where = f"all {len(results)} rows" if everywhere else f"row {failed[0]} of {len(results)}"
        raised = RewardError(
            f"Reward {self.__name__!r} failed in {where} of this call with {type(error).__name__}: {error}. Repair it, "
            'or pass on_error="skip" (no reward for that row) or on_error=<number>.'
        )
        raised.row = failed[0]
        raise raised from error

    def _count(self, errors: int, skips: int) -> None:
        self.skips += skips
        self.last_metrics[f"rewards/{self.__name__}/errors"] = float(errors)
        self.last_metrics[f"rewards/{self.__name__}/skips"] = float(skips)

    def _log(self, batch: RewardBatch) -> None:
        if "log_metric" in batch.context:
            for name, value in self.last_metrics.items():
                batch.context["log_metric"](name, value)
        if "log_extra" in batch.context:
            for column, values in self.extras.items():
                batch.context["log_extra"](column, values)

    def note(self, detail: str, values: Sequence[Any]) -> None:
        """Keep a row-wise detail: the mean of numbers as a metric, other values as texts, per row.

        Args:
            detail: its name; logged as `rewards/<name>/<detail>`, texts in the column `<name>/<detail>`.
            values: one value per row, None for rows without it.
        """
        known = [value for value in values if value is not None]
        numbers = [as_reward(value) for value in known]
        if numbers and all(isinstance(number, float) for number in numbers):
            self.last_metrics[f"rewards/{self.__name__}/{detail}"] = math.fsum(map(float, numbers)) / len(numbers)  # type: ignore[arg-type]
        elif known:
            self.extras[f"{self.__name__}/{detail}"] = [None if value is None else str(value) for value in values]

"""Rewards from an HTTP service: rows as JSON."""

from collections.abc import Iterable, Mapping
from typing import Any

from trl_grpo_ext.rewards.adapters.base import ErrorPolicy, RewardAdapter
from trl_grpo_ext.rewards.adapters.batch import RewardBatch
from trl_grpo_ext.rewards.adapters.calls import as_list, attempt
from trl_grpo_ext.rewards.adapters.http_json import Breaker, Service, ServiceError


def rewards_of(url: str, answer: Any) -> Any:
    """Return the rewards in a service's answer: the list under "rewards", or the answer itself when it is a list.

    Raises:
        ServiceError: neither.
    """
    rewards = answer.get("rewards") if isinstance(answer, Mapping) else answer
    if not isinstance(rewards, list):
        raise ServiceError(f'{url}: the answer must be {{"rewards": [...]}} or a list, not {str(answer)[:200]!r}')
    return rewards


def _chunks(size: int, length: int | None) -> list[range]:
    step = length or max(size, 1)
    return [range(start, min(start + step, size)) for start in range(0, size, step)]


class HTTPReward(RewardAdapter):
    """POSTs rows to a service and takes one reward per row.

    Request: {"rows": [{"prompt": <text or messages>, "completion": <text>, <column>: <value>, ...}, ...]}.
    Answer: {"rewards": [...]} or the list itself, a number or null (no reward) per row. `prompt` is the column
    `plain_prompt` where there is one. Requests of one call are sent one after another; after three in a row have
    failed for good, the rest of the call fails without being sent.

    Args:
        service: a URL, or a `Service` with timeout, retries, headers and token.
        name: the name that TRL logs.
        columns: the dataset columns to send; their values must be JSON. None by default: prompt and completion only.
        batch_size: rows per request; None (default) sends all rows of a call in one.
        on_error: see `RewardAdapter`. A request that fails for good is an error of each of its rows.

    Raises:
        ValueError: not a URL, `batch_size` below 1, a column named "prompt" or "completion", `on_error` is no policy.
    """

    def __init__(
        self,
        service: str | Service,
        *,
        name: str = "http_reward",
        columns: Iterable[str] = (),
        batch_size: int | None = None,
        on_error: ErrorPolicy = "raise",
    ) -> None:
        self.columns = tuple(columns)
        if {"prompt", "completion"} & set(self.columns):
            raise ValueError(
                f"columns of reward {name!r} must not name 'prompt' or 'completion': they are always sent."
            )
        if batch_size is not None and batch_size < 1:
            raise ValueError(
                f"batch_size of reward {name!r} must be 1 or more, or None for one request, not {batch_size}."
            )
        super().__init__(name, on_error, self.columns)
        self.service = Service(service) if isinstance(service, str) else service
        self.batch_size = batch_size

    def _request(self, service: Breaker, rows: list[dict[str, Any]]) -> list[Any]:
        answer = attempt(service.post, {"rows": rows})
        if not isinstance(answer, Exception):
            answer = attempt(rewards_of, self.service.shown, answer)
        return as_list(self.__name__, answer, len(rows))

    def outcomes(self, batch: RewardBatch) -> list[Any]:
        """Send the rows."""
        values = {"prompt": batch.prompts, "completion": batch.responses()}
        values |= {column: batch.column(column) for column in self.columns}
        rows = [{name: column[row] for name, column in values.items()} for row in range(batch.size)]
        service, chunks = Breaker(self.service), _chunks(batch.size, self.batch_size)
        return [reward for chunk in chunks for reward in self._request(service, [rows[row] for row in chunk])]

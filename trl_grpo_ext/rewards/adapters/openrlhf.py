"""OpenRLHF's `reward_func(queries, prompts, labels)`, as a function and over HTTP."""

from collections.abc import Callable, Mapping
from typing import Any

from trl_grpo_ext.rewards.adapters.base import ErrorPolicy, RewardAdapter
from trl_grpo_ext.rewards.adapters.batch import RewardBatch
from trl_grpo_ext.rewards.adapters.calls import as_list, attempt, call_once, callable_name
from trl_grpo_ext.rewards.adapters.endpoint import rewards_of
from trl_grpo_ext.rewards.adapters.http_json import Service


def _texts(batch: RewardBatch, label_column: str) -> tuple[list[str], list[str], list[Any]]:
    """Return queries, prompts and labels; a query is the prompt's text followed by the response's."""
    prompts = batch.prompt_texts()
    queries = [prompt + response for prompt, response in zip(prompts, batch.responses(), strict=True)]
    return queries, prompts, list(batch.column(label_column))


class OpenRLHFReward(RewardAdapter):
    """`reward_func(queries, prompts, labels)`, sync or async, once for all rows.

    A query is the prompt followed by the response, so `query[len(prompt):]` is the response. Of a conversation the
    prompt is each message's text with a newline after each: there is no chat template here. The function returns a
    tensor, a list, or a dict with one under "rewards"; the dict's "scores" and each entry of its "extra_logs", a number
    or one per row, are logged as means, `rewards/<name>/<entry>`.

    Args:
        reward_func: the function.
        label_column: the dataset column for `labels`; "labels" by default.
        name: the function's own name by default.
        on_error: see `RewardAdapter`. The function is called once, so an exception is an error of every row.

    Raises:
        ValueError: `on_error` is no policy.
    """

    def __init__(
        self,
        reward_func: Callable[..., Any],
        *,
        label_column: str = "labels",
        name: str | None = None,
        on_error: ErrorPolicy = "raise",
    ) -> None:
        super().__init__(name or callable_name(reward_func), on_error, [label_column])
        self.func = reward_func
        self.label_column = label_column

    def _note_details(self, result: Mapping[str, Any], size: int) -> None:
        details = {"scores": result.get("scores"), **(result.get("extra_logs") or {})}
        for detail, values in details.items():
            plain = values.tolist() if hasattr(values, "tolist") else values
            if isinstance(plain, (int, float)):
                self.note(detail, [plain])
            elif plain is not None:
                self.note(detail, as_list(f"{self.__name__}/{detail}", plain, size))

    def outcomes(self, batch: RewardBatch) -> list[Any]:
        """Call the function once for all rows."""
        result = call_once(self.func, *_texts(batch, self.label_column))
        if isinstance(result, Mapping):
            self._note_details(result, batch.size)
            result = result.get("rewards", ValueError(f"a dict without 'rewards', only {', '.join(map(str, result))}"))
        return as_list(self.__name__, result, batch.size)


class OpenRLHFEndpoint(RewardAdapter):
    """A reward server for OpenRLHF's `--remote_rm_url`: POST {"query", "prompts", "labels"} -> {"rewards": [...]}.

    Args:
        service: a URL, or a `Service` with timeout, retries, headers and token.
        label_column: the dataset column for `labels`; "labels" by default.
        name: the name that TRL logs.
        on_error: see `RewardAdapter`. A request that fails for good is an error of every row.

    Raises:
        ValueError: not a URL, or `on_error` is no policy.
    """

    def __init__(
        self,
        service: str | Service,
        *,
        label_column: str = "labels",
        name: str = "openrlhf_endpoint",
        on_error: ErrorPolicy = "raise",
    ) -> None:
        super().__init__(name, on_error, [label_column])
        self.service = Service(service) if isinstance(service, str) else service
        self.label_column = label_column

    def outcomes(self, batch: RewardBatch) -> list[Any]:
        """Send all rows in one request."""
        queries, prompts, labels = _texts(batch, self.label_column)
        answer = attempt(self.service.post, {"query": queries, "prompts": prompts, "labels": labels})
        if not isinstance(answer, Exception):
            answer = attempt(rewards_of, self.service.shown, answer)
        return as_list(self.__name__, answer, batch.size)

"""verl's `compute_score`, in its row form and its batch form."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trl_grpo_ext.rewards.adapters.base import ErrorPolicy, RewardAdapter
from trl_grpo_ext.rewards.adapters.batch import RewardBatch
from trl_grpo_ext.rewards.adapters.calls import as_list, call_once, call_rows, callable_name


def _is_batch_form(func: Callable[..., Any]) -> bool:
    return "solution_strs" in inspect.signature(func).parameters


def _ground_truths(batch: RewardBatch) -> Sequence[Any]:
    if "ground_truth" in batch.columns or "reward_model" not in batch.columns:
        return batch.column("ground_truth")
    models = batch.column("reward_model")
    for row, model in enumerate(models):
        if not isinstance(model, Mapping) or "ground_truth" not in model:
            raise ValueError(
                f"Reward {batch.name!r} needs a mapping with 'ground_truth' in the column 'reward_model', and row {row} "
                f"of this call holds {str(model)[:80]!r}; repair the row, or add a column 'ground_truth'."
            )
    return [model["ground_truth"] for model in models]


def split_score(result: Any) -> tuple[Any, Mapping[str, Any]]:
    """Split what `compute_score` returned into the reward and further details.

    A mapping holds the reward under "score" and the details beside it; of a tuple or list the first element counts;
    anything else is the reward itself. A mapping without "score", or an empty tuple, gives an exception as reward.
    """
    if isinstance(result, Mapping):
        missing = ValueError(f"compute_score returned a dict without 'score', only {', '.join(map(str, result))}")
        return result.get("score", missing), {key: value for key, value in result.items() if key != "score"}
    if isinstance(result, (tuple, list)):
        return (result[0] if result else ValueError("compute_score returned an empty tuple")), {}
    return result, {}


class VerlReward(RewardAdapter):
    """verl's `compute_score(data_source, solution_str, ground_truth, extra_info=None)`, sync or async.

    A function with a parameter `solution_strs` is called once for all rows, in the form of verl's batch manager:
    `compute_score(data_sources, solution_strs, ground_truths, extra_infos)`. It returns a number, a dict with "score"
    or a tuple that starts with it (per row, in the batch form). The other entries of a dict are logged: numbers as
    the mean `rewards/<name>/<entry>`, others as texts in the completions table.

    Columns: `data_source`, `ground_truth` (or `reward_model["ground_truth"]`, as in verl's files), `extra_info` (None
    when there is no such column). `solution_str` is the text of the completion.

    Args:
        compute_score: the function.
        data_source: the data source of every row when the dataset has no such column; None (default) requires it.
        name: the function's own name by default.
        on_error: see `RewardAdapter`.

    Raises:
        ValueError: `on_error` is no policy.
    """

    def __init__(
        self,
        compute_score: Callable[..., Any],
        *,
        data_source: str | None = None,
        name: str | None = None,
        on_error: ErrorPolicy = "raise",
    ) -> None:
        required = [] if data_source is not None else ["data_source"]
        super().__init__(name or callable_name(compute_score), on_error, required)
        self.func = compute_score
        self.data_source = data_source
        self._batch_form = _is_batch_form(compute_score)

    def _data_sources(self, batch: RewardBatch) -> Sequence[Any]:
        if self.data_source is None:
            return batch.column("data_source")
        return batch.optional_column("data_source", self.data_source)

    def _results(self, batch: RewardBatch) -> list[Any]:
        columns = {
            "data_source": self._data_sources(batch),
            "solution_str": batch.responses(),
            "ground_truth": _ground_truths(batch),
            "extra_info": batch.optional_column("extra_info"),
        }
        if not self._batch_form:
            return call_rows(self.func, ({n: v[row] for n, v in columns.items()} for row in range(batch.size)))
        result = call_once(self.func, **{f"{name}s": list(values) for name, values in columns.items()})
        return as_list(self.__name__, result, batch.size)

    def outcomes(self, batch: RewardBatch) -> list[Any]:
        """Call `compute_score` and log what it returned beside the score."""
        scores = [split_score(result) for result in self._results(batch)]
        for detail in dict.fromkeys(key for _, details in scores for key in details):
            self.note(str(detail), [details.get(detail) for _, details in scores])
        return [reward for reward, _ in scores]

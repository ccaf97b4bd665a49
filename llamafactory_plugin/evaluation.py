"""`grpo_eval_metrics` and `do_predict`: figures of the held-out rows that are not the reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from llamafactory.extras import logging

from llamafactory_plugin.errors import UsageError, nearest
from llamafactory_plugin.evaluation_arguments import samples_per_row
from llamafactory_plugin.rewards import RewardResolver, check_ground_truth, needs_groups
from trl_grpo_ext.evaluation import SCORERS, EvaluationCallback, Sampling, problem_key
from trl_grpo_ext.rewards import REWARDS, check_reward_columns

logger = logging.get_logger("llamafactory.grpo")

Metric = Callable[..., Any]
KEY = "grpo_eval_metrics"
PREDICTED = "predict_samples.jsonl"
# What only a trainer gives to a reward.
OF_THE_TRAINER = ("completion_ids", "trainer_state", "log_metric", "log_extra")


def load_metrics(run: Any) -> list[Metric]:
    """The functions that `grpo_eval_metrics` names, none of them run yet.

    Raises:
        UsageError: for a name, file or function that is none, and for one that compares the completions of a group.
    """
    resolver = RewardResolver(run)
    try:
        metrics = [SCORERS.get(name) or resolver.one(name) for name in run.finetuning_args.grpo_eval_metrics or []]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{KEY}: {error}") from error
    grouped = next((metric.__name__ for metric in metrics if needs_groups(metric)), None)
    if grouped is not None:
        raise UsageError(f"{KEY}: {grouped} compares the completions of a group; name one that scores each by itself.")
    return metrics


def sampling_of(run: Any, config: Any) -> Sampling:
    """How held-out rows are sampled: as the rollouts of an evaluation are.

    Raises:
        UsageError: for several samples at temperature 0.
    """
    temperature = config.temperature if config.eval_temperature is None else config.eval_temperature
    try:
        return Sampling(
            samples=samples_per_row(run.finetuning_args, temperature, config.num_generations),
            temperature=float(temperature),
            top_p=float(config.top_p),
            top_k=int(config.top_k or 0),
            max_new_tokens=config.max_completion_length,
            batch_size=config.per_device_eval_batch_size,
            seed=run.training_args.seed,
        )
    except ValueError as error:
        raise UsageError(f"grpo_eval_samples: {error}") from error


def problems_of(datasets: Iterable[tuple[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the evaluation sets, each once; rows that occur twice are told."""
    rows = [dict(row) for _, dataset in datasets for row in dataset]
    found = {problem_key(row): row for row in reversed(rows)}
    if len(found) < len(rows):
        logger.warning_rank0(f"{KEY}: {len(rows) - len(found)} of {len(rows)} held-out rows occur twice; one counts.")
    return list(reversed(found.values()))


def evaluation_callback(run: Any, config: Any, data: Any) -> EvaluationCallback | None:
    """The callback that measures `grpo_eval_metrics` at every evaluation; None without metrics.

    Raises:
        UsageError: for metrics, rows or settings that do not fit, before the model is loaded.
    """
    metrics = load_metrics(run)
    if not metrics:
        return None
    own = data.datasets["eval_dataset"]
    datasets = list(own.items()) if isinstance(own, dict) else [("eval_dataset", own)]
    for metric in metrics:
        check_metric(metric, datasets)
    try:
        callback = EvaluationCallback(problems_of(datasets), metrics, sampling_of(run, config))
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{KEY}: {error}") from error
    check_best_metric(config, callback)
    return callback


def check_best_metric(config: Any, callback: EvaluationCallback) -> None:
    """Refuse a best checkpoint by a figure that no evaluation logs.

    Raises:
        UsageError: with the nearest right name.
    """
    wanted, known = config.metric_for_best_model, [f"eval_{name}" for name in callback.figure_names()]
    is_figure = any(str(wanted).startswith(f"eval_{scorer.__name__}/") for scorer in callback.scorers)
    if config.load_best_model_at_end and is_figure and wanted not in known:
        raise UsageError(
            f"metric_for_best_model: no evaluation logs {wanted!r}{nearest(wanted, known)} There are {', '.join(known)}."
        )


def check_metric(metric: Metric, datasets: Sequence[tuple[str, Any]]) -> None:
    """Refuse a metric that these rows can't be scored by.

    Raises:
        UsageError: naming metric and column.
    """
    for _, dataset in datasets:
        try:
            check_reward_columns(metric, dataset.column_names)
        except ValueError as error:
            raise UsageError(f"{KEY}: {error}") from error
    required = [item.name for item in _parameters(metric) if item.default is item.empty]
    wanted = next((name for name in OF_THE_TRAINER if name in required), None)
    if wanted is not None:
        raise UsageError(f"{KEY}: {metric.__name__} needs {wanted!r}, which only a trainer gives; do without it.")
    if metric in SCORERS.values() or REWARDS.get(metric.__name__) is metric:
        check_ground_truth(metric, datasets, KEY)


def _parameters(metric: Metric) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(metric).parameters.values())
    except (TypeError, ValueError):
        return []


def predict(callback: EvaluationCallback, trainer: Any) -> dict[str, float]:
    """`do_predict`: sample and score the held-out rows, write samples and figures, and return the figures.

    Samples go to `predict_samples.jsonl`, figures to `predict_results.json`, both begun anew.
    """
    path = Path(trainer.args.output_dir) / PREDICTED
    if trainer.is_world_process_zero():
        path.unlink(missing_ok=True)
    own = EvaluationCallback(callback.problems, callback.scorers, callback.sampling, path=path)
    own.attach(trainer)
    figures = {f"predict_{name}": value for name, value in own.evaluate().items()}
    trainer.log_metrics("predict", figures)
    trainer.save_metrics("predict", figures)
    return figures


def evaluation_line(callback: EvaluationCallback | None) -> str | None:
    """What is measured, for the log; None without metrics."""
    if callback is None:
        return None
    names = ", ".join(scorer.__name__ for scorer in callback.scorers)
    drawn = callback.sampling
    return f"metrics {names}: {len(callback.problems)} held-out rows x {drawn.samples} samples, temperature {drawn.temperature}"

"""`EvaluationCallback`: a metric that is not the reward, while a GRPO trainer trains, and the best checkpoint by it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trl_grpo_ext._attach import calling_trainer
from trl_grpo_ext.evaluation.generation import Sampling
from trl_grpo_ext.evaluation.intervals import Estimate
from trl_grpo_ext.evaluation.ranks import drawn_by_all, on_main_process
from trl_grpo_ext.evaluation.results import OWN_COLUMNS, Scorer, default_ks, evaluate, score_rows, scorer_name
from trl_grpo_ext.evaluation.samples import Row, SampleLog, last_evaluation, problem_key

FILE = "evaluation_samples.jsonl"


class EvaluationCallback(TrainerCallback):
    """Draws samples of held-out problems at every evaluation of a GRPO trainer, and scores them by other functions.

    For TRL's GRPOTrainer and everything derived from it: `callbacks=[EvaluationCallback(rows, [exact_match])]`. It runs
    when the trainer evaluates (`eval_strategy`), so the trainer needs an `eval_dataset`. Its metrics are
    `eval_<scorer>/avg@n`, `/pass@k`, `/pass^k` and, for scorers with `extract`, `/maj@k`, each with `_low` and `_high`
    of its 95 % interval (problems are the unit; see `mean_interval`). They stand among the trainer's evaluation
    metrics, so `metric_for_best_model="eval_exact_match/avg@4"` picks the best checkpoint by them.

    Completions are drawn by the model itself, not by vLLM, with seeds of their own: training goes on with the same
    random numbers as without the callback, and two ranks draw the samples that one draws. Every sample goes to
    `evaluation_samples.jsonl` in the output folder, written by the main process, on the disk before the metrics are
    logged, with its `step` and the number of its `evaluation` in the file. A run that is resumed goes on with that file.

    Args:
        problems: rows with `prompt` (text or messages) and the columns that the scorers take; each once.
        scorers: functions in the convention of TRL's rewards, called on the main process.
        sampling: how completions are drawn; 1 sample at temperature 1 and `max_new_tokens` of 512 by default.
        ks: the k of pass@k, pass^k and maj@k; 1, 2, 4, ... and the number of samples by default.
        correct_from: a sample is right when its score is at least this; 1.0 by default.
        path: the file of samples, in place of the one in the output folder.

    Raises:
        ValueError: no problem, one without a prompt, two that are the same, no scorer, two of one name, k out of range;
            at an evaluation: a scorer's own error.
        TypeError: at the start of training, a trainer that is not a GRPO trainer.
    """

    def __init__(
        self,
        problems: Iterable[Mapping[str, Any]],
        scorers: Sequence[Scorer],
        sampling: Sampling | None = None,
        *,
        ks: Sequence[int] | None = None,
        correct_from: float = 1.0,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self.problems, self.scorers = [dict(row) for row in problems], list(scorers)
        self.sampling, self.ks, self.correct_from = sampling or Sampling(), ks, correct_from
        self.path = None if path is None else Path(path)
        self.trainer: Any = None
        self.estimates: dict[str, Estimate] = {}
        self._seen: tuple[int, set[str]] = (-1, set())
        # How many evaluations the file holds; None until it is looked into.
        self._done: int | None = None
        check_problems(self.problems)
        check_scorers(self.scorers)
        if ks is not None and not all(1 <= k <= self.sampling.samples for k in ks):
            raise ValueError(f"ks must be from 1 to the number of samples ({self.sampling.samples}), not {list(ks)}.")

    def figure_names(self) -> list[str]:
        """Return the names of the figures, without `eval_`: what `metric_for_best_model` can name behind that."""
        samples = self.sampling.samples
        ks = default_ks(samples) if self.ks is None else sorted(set(self.ks))
        names = []
        for scorer in self.scorers:
            kinds = ("pass@", "pass^", *(("maj@",) if hasattr(scorer, "extract") else ()))
            figures = [f"avg@{samples}", *(f"{kind}{k}" for k in ks for kind in kinds)]
            names += [f"{scorer_name(scorer)}/{figure}" for figure in figures]
        return names

    def attach(self, trainer: Any) -> None:
        """Take a trainer, to `evaluate` it outside of training.

        Raises:
            TypeError: it is not a GRPO trainer.
        """
        if not hasattr(trainer, "reward_funcs"):
            raise TypeError(f"EvaluationCallback needs a GRPOTrainer, not {type(trainer).__name__}.")
        self.trainer, self._done = trainer, None

    def log_of(self, trainer: Any) -> SampleLog:
        """Return the file of samples."""
        return SampleLog(self.path or Path(trainer.args.output_dir) / FILE)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the trainer, and begin the file, or go on with it where training is resumed."""
        trainer = calling_trainer()
        if trainer is None:
            raise RuntimeError("EvaluationCallback found no trainer among its callers; call attach(trainer) instead.")
        self.attach(trainer)
        self._seen = (-1, set())
        if state.is_world_process_zero:
            self.log_of(trainer).keep_up_to(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Draw, score, write and log; add the figures to the trainer's metrics, from which the best model is picked."""
        if self.trainer is None:
            self.attach(calling_trainer())
        prefix = next((name.removesuffix("_runtime") for name in metrics or {} if name.endswith("_runtime")), "eval")
        step, prefixes = self._seen
        # A trainer with several evaluation sets evaluates once for each, and these problems are none of them.
        if step != state.global_step or prefix in prefixes:
            self._seen, found = (state.global_step, set()), self.evaluate()
            self.trainer.log({f"eval_{name}": value for name, value in found.items()})
        self._seen[1].add(prefix)
        if metrics is not None:
            metrics.update({f"eval_{name}": value for name, value in self._figures().items()})

    def evaluate(self) -> dict[str, float]:
        """Draw and score samples with the trainer's model as it is now, write them, and return the figures.

        Raises:
            RuntimeError: no trainer is attached.
            ValueError: a scorer's error, on every rank.
        """
        if self.trainer is None:
            raise RuntimeError("EvaluationCallback.evaluate() needs a trainer: call attach(trainer) first.")
        rows = drawn_by_all(self.trainer, self.problems, self.sampling)
        self.estimates = on_main_process(lambda: self._scored(rows))
        return self._figures()

    def _scored(self, rows: list[Row]) -> dict[str, Estimate]:
        """On the main process: score, write, and put figures to it."""
        log = self.log_of(self.trainer)
        self._done = 1 + (last_evaluation(log.rows()) if self._done is None else self._done)
        place = {"step": self.trainer.state.global_step, "evaluation": self._done}
        # First in the line, and not to be replaced by a column of the problems.
        scored = [place | row | place for row in score_rows(rows, self.scorers)]
        log.write(scored)
        return evaluate(scored, self.scorers, ks=self.ks, correct_from=self.correct_from).estimates()

    def _figures(self) -> dict[str, float]:
        figures = {}
        for name, item in self.estimates.items():
            figures[name] = item.value
            if item.low is not None and item.high is not None:
                figures |= {f"{name}_low": item.low, f"{name}_high": item.high}
        return figures


def check_problems(problems: Sequence[Row]) -> None:
    """Refuse problems that can't be told apart or have no prompt.

    Raises:
        ValueError: says which.
    """
    if not problems:
        raise ValueError("problems must hold at least one row with a prompt.")
    seen: dict[str, int] = {}
    for number, row in enumerate(problems):
        if not row.get("prompt"):
            raise ValueError(f"problems: row {number} has no prompt; it has {', '.join(row)}.")
        taken = sorted((OWN_COLUMNS - {"prompt"}) & set(row))
        if taken:
            raise ValueError(f"problems: the column {taken[0]!r} is one that the file of samples adds; rename it.")
        before = seen.setdefault(problem_key(row), number)
        if before != number:
            raise ValueError(
                f"problems: rows {before} and {number} are the same problem; leave one out, or tell them apart by a "
                "column 'problem'. For several samples of one set Sampling(samples=...)."
            )


def check_scorers(scorers: Sequence[Scorer]) -> None:
    """Refuse scorers that can't be reported.

    Raises:
        ValueError: none, one without a name, or two of one name.
    """
    names = [scorer_name(scorer) for scorer in scorers]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"scorers must be at least one function, each with a name of its own, not {names}.")

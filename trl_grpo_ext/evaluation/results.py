"""From samples to figures with intervals: scoring, avg@k, pass@k, pass^k, maj@k, and two runs compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from trl_grpo_ext.evaluation.estimators import majority_at_k, pass_at_k, pass_hat_k
from trl_grpo_ext.evaluation.intervals import Difference, Estimate, mean_interval, paired_difference
from trl_grpo_ext.evaluation.samples import Row, SamplesError, by_problem
from trl_grpo_ext.evaluation.scorers import text_of

Scorer = Callable[..., Sequence[Any]]

# What a file of samples holds beside the columns of the data set.
OWN_COLUMNS = frozenset(
    {"prompt", "completion", "sample", "step", "evaluation", "tokens", "truncated", "scores", "rewards", "reward"}
    | {"advantage", "run", "number", "injected_prompt"}
)


def scorer_name(scorer: Scorer) -> str:
    """Return the name under which a scorer's figures are reported.

    Raises:
        ValueError: it has no `__name__`.
    """
    name = getattr(scorer, "__name__", None)
    if not isinstance(name, str):
        raise ValueError(f"scorer {scorer!r} has no __name__, under which it is reported; set one.")
    return name


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _completion(row: Row) -> Any:
    """The completion in the form in which TRL gives it to rewards: messages where the prompt is messages."""
    completion = row["completion"]
    if isinstance(row.get("prompt"), list) and isinstance(completion, str):
        return [{"role": "assistant", "content": completion}]
    return completion


def score_rows(rows: Sequence[Row], scorers: Sequence[Scorer]) -> list[Row]:
    """Return the rows with `scores`, name -> number, or None where a scorer says nothing of a row.

    Scorers are called as TRL calls rewards: `f(prompts=, completions=, <columns>)`, with the plain prompt.

    Raises:
        SamplesError: a row without a completion.
        ValueError: a scorer without a name, or one that does not give one score per row.
    """
    if not rows:
        return []
    for number, row in enumerate(rows):
        if "completion" not in row:
            raise SamplesError(f"row {number} has no column 'completion'; it has {', '.join(row)}.")
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(n for row in rows for n in row)}
    given = {name: values for name, values in columns.items() if name not in OWN_COLUMNS}
    prompts, completions = [row.get("prompt") for row in rows], [_completion(row) for row in rows]
    scores: list[dict[str, float | None]] = [{} for _ in rows]
    for scorer in scorers:
        name, found = scorer_name(scorer), list(scorer(prompts=prompts, completions=completions, **given))
        if len(found) != len(rows):
            raise ValueError(
                f"scorer {name!r} gave {len(found)} scores for {len(rows)} completions; give one for each."
            )
        for row_scores, value in zip(scores, found, strict=True):
            row_scores[name] = _number(value)
    return [row | {"scores": row_scores} for row, row_scores in zip(rows, scores, strict=True)]


def stored_scores(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the `scores` that they carry, or else their `rewards`.

    Raises:
        SamplesError: a row has neither.
    """
    for number, row in enumerate(rows):
        if not isinstance(row.get("scores") or row.get("rewards"), dict):
            raise SamplesError(f"row {number} has neither 'scores' nor 'rewards': name a scorer.")
    return [row | {"scores": dict(row.get("scores") or row["rewards"])} for row in rows]


@dataclass(frozen=True)
class Evaluation:
    """The figures of one set of samples.

    Attributes:
        values: metric -> problem -> figure, the metrics `<scorer>/avg@n`, `/pass@k`, `/pass^k`, `/maj@k`.
        samples: how many samples there are.
        unscored: scorer -> samples that it said nothing of; they are left out of its figures.
    """

    values: Mapping[str, Mapping[str, float]]
    samples: int
    unscored: Mapping[str, int] = field(default_factory=dict)

    def estimates(self, level: float = 0.95) -> dict[str, Estimate]:
        """Return each metric's mean over problems with its interval; see `mean_interval`."""
        return {
            name: mean_interval(list(values.values()), level=level, samples=max(self.samples, len(values)))
            for name, values in self.values.items()
        }

    def means(self) -> dict[str, float]:
        """Return each metric's mean over problems."""
        return {name: fmean(values.values()) for name, values in self.values.items()}


def default_ks(samples: int) -> list[int]:
    """Return 1, 2, 4, ... and the number of samples."""
    return sorted({2**power for power in range(samples.bit_length()) if 2**power <= samples} | {samples})


def _problem_figures(
    rows: Sequence[Row], name: str, ks: Sequence[int], extract: Callable[[str], str | None] | None, correct_from: float
) -> dict[str, float]:
    scored = [row for row in rows if row["scores"].get(name) is not None]
    if not scored:
        return {}
    scores = [row["scores"][name] for row in scored]
    right = [score >= correct_from for score in scores]
    figures = {"avg": fmean(scores)}
    for k in (k for k in ks if k <= len(scored)):
        figures[f"pass@{k}"] = pass_at_k(len(right), sum(right), k)
        figures[f"pass^{k}"] = pass_hat_k(len(right), sum(right), k)
        if extract is not None:
            answers = [extract(text_of(row["completion"])) for row in scored]
            figures[f"maj@{k}"] = majority_at_k(answers, right, k)
    return figures


def evaluate(
    rows: Sequence[Row],
    scorers: Sequence[Scorer] = (),
    *,
    ks: Sequence[int] | None = None,
    correct_from: float = 1.0,
) -> Evaluation:
    """Return the figures of rows that have `scores`; see `score_rows`.

    Args:
        rows: samples with `scores`, of one step, n per problem.
        scorers: those of them that have `extract` get maj@k.
        ks: the k of pass@k, pass^k and maj@k; 1, 2, 4, ... and n by default.
        correct_from: a sample is right when its score is at least this.

    Raises:
        SamplesError: no rows, or a problem with fewer samples than the largest k.
    """
    if not rows:
        raise SamplesError("there are no samples to evaluate.")
    problems = by_problem(rows)
    sizes = {len(items) for items in problems.values()}
    ks = default_ks(min(sizes)) if ks is None else sorted(set(ks))
    _check_ks(ks, min(sizes))
    extracts = {scorer_name(scorer): getattr(scorer, "extract", None) for scorer in scorers}
    average = f"avg@{min(sizes)}" if len(sizes) == 1 else "avg"
    values: dict[str, dict[str, float]] = {}
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    for name in names:
        for problem, items in problems.items():
            for figure, value in _problem_figures(items, name, ks, extracts.get(name), correct_from).items():
                shown = average if figure == "avg" else figure
                values.setdefault(f"{name}/{shown}", {})[problem] = value
    unscored = {name: sum(row["scores"].get(name) is None for row in rows) for name in names}
    return Evaluation(values, len(rows), {name: count for name, count in unscored.items() if count})


def _check_ks(ks: Sequence[int], samples: int) -> None:
    wrong = [k for k in ks if not 1 <= k <= samples]
    if wrong:
        raise SamplesError(
            f"k={wrong[0]} needs at least {max(wrong[0], 1)} samples of every problem, and one has {samples}; "
            "draw more samples, or ask for a smaller k."
        )


def compare(first: Evaluation, second: Evaluation, level: float = 0.95) -> dict[str, Difference]:
    """Return first minus second per metric that both have, paired over the problems that both have.

    Raises:
        SamplesError: they share no metric, or no problem.
    """
    shared = [name for name in first.values if name in second.values]
    found = {}
    for name in shared:
        one, other = first.values[name], second.values[name]
        problems = [problem for problem in one if problem in other]
        if problems:
            pairs = [one[problem] for problem in problems], [other[problem] for problem in problems]
            found[name] = paired_difference(*pairs, level=level)
    if not found:
        raise SamplesError(
            "the two share no problem and metric: give both the same data, the same scorers and as many samples."
        )
    return found

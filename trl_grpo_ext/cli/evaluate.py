"""`grpo-ext evaluate TARGET`: figures of a file of samples or of a model, alone or against another."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trl_grpo_ext.cli.evaluate_arguments import parser
from trl_grpo_ext.evaluation import (
    SCORERS,
    Evaluation,
    compare,
    differences_table,
    estimates_table,
    evaluate,
    read_rows,
    rows_of_step,
    score_rows,
    stored_scores,
    two_by_two,
)
from trl_grpo_ext.experience import ExperienceError
from trl_grpo_ext.rewards import resolve_reward_funcs

Row = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0: done, 1: refused, with the reason on the error output."""
    given = parser().parse_args(list(arguments))
    try:
        report = _run(given)
        if given.json:
            Path(given.json).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except (OSError, ValueError, TypeError, ImportError, ExperienceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(given: argparse.Namespace) -> dict[str, Any]:
    targets = _targets(given)
    scorers = _scorers(given.scorer)
    models = [path for path, _ in targets.values() if Path(path).is_dir()]
    _check(given, models, scorers)
    evaluations = {
        name: _evaluation(path, with_experiences, scorers, given) for name, (path, with_experiences) in targets.items()
    }
    report: dict[str, Any] = {"level": given.level, "targets": {}}
    for name, evaluation in evaluations.items():
        report["targets"][name] = _printed(name, evaluation, given.level)
    if given.baseline:
        differences = compare(evaluations["target"], evaluations["baseline"], given.level)
        print(
            f"\n{given.target} minus {given.baseline}, paired by problem\n{differences_table(differences, given.level)}"
        )
        report["differences"] = {name: asdict(item) for name, item in differences.items()}
    if given.two_by_two:
        report["two_by_two"] = _two_by_two(evaluations, given.level)
    return report


def _two_by_two(evaluations: dict[str, Evaluation], level: float) -> dict[str, Any]:
    """Print the table of each metric, and return what training and answering with experiences change."""
    cells = {(trained, answered): evaluations[CELLS[trained, answered]] for trained, answered in CELLS}
    shared = [name for name in cells[False, False].values if all(name in cell.values for cell in cells.values())]
    for metric in (name for name in shared if name.split("/")[-1].startswith("avg")):
        print(f"\n{two_by_two(cells, metric, level)}")
    changes = {}
    for used in (False, True):
        word = "with" if used else "without"
        changes[f"answering with, trained {word}"] = compare(cells[used, True], cells[used, False], level)
        changes[f"training with, answered {word}"] = compare(cells[True, used], cells[False, used], level)
    return {name: {metric: asdict(item) for metric, item in found.items()} for name, found in changes.items()}


CELLS = {
    (False, False): "trained without, answered without",
    (False, True): "trained without, answered with",
    (True, False): "trained with, answered without",
    (True, True): "trained with, answered with",
}


def _targets(given: argparse.Namespace) -> dict[str, tuple[str, bool]]:
    """Name -> (path, whether experiences go into its prompts)."""
    if not given.two_by_two:
        found = {"target": (given.target, bool(given.experiences))}
        # The baseline answers the same prompts.
        return found | ({"baseline": (given.baseline, bool(given.experiences))} if given.baseline else {})
    if given.baseline:
        raise ValueError("--two-by-two compares its four cells itself: leave --baseline out.")
    names = list(CELLS.values())
    if len(given.two_by_two) == 1 and given.experiences:
        (other,) = given.two_by_two
        return dict(
            zip(names, ((given.target, False), (given.target, True), (other, False), (other, True)), strict=True)
        )
    if len(given.two_by_two) == 3 and not given.experiences:
        return dict(zip(names, ((path, False) for path in (given.target, *given.two_by_two)), strict=True))
    raise ValueError("--two-by-two takes one model folder with --experiences, or three files of samples without it.")


def _scorers(names: str) -> list[Any]:
    wanted = [name for name in names.split(",") if name]
    found = [SCORERS[name] if name in SCORERS else resolve_reward_funcs(name)[0] for name in wanted]
    if len({scorer.__name__ for scorer in found}) < len(found):
        raise ValueError(f"--scorer names one scorer twice: {names}.")
    return found


def _check(given: argparse.Namespace, models: list[str], scorers: list[Any]) -> None:
    if models and not (given.data and scorers):
        raise ValueError(f"{models[0]} is a folder of a model, which needs --data and --scorer.")
    if given.experiences and len(models) < (1 if not given.baseline else 2):
        raise ValueError("--experiences goes into the prompts of models; a file of samples has been answered already.")
    if given.data and not models:
        raise ValueError("--data is for models; a file of samples has its prompts and columns already.")


def _evaluation(path: str, with_experiences: bool, scorers: list[Any], given: argparse.Namespace) -> Evaluation:
    if Path(path).is_dir():
        from trl_grpo_ext.cli.evaluate_model import model_rows

        rows = model_rows(Path(path), with_experiences, given)
    else:
        rows, step = rows_of_step(read_rows(path), given.step)
        if step is not None:
            print(f"{path}: samples of step {step}")
    scored = score_rows(rows, scorers) if scorers else stored_scores(rows)
    return evaluate(scored, scorers, ks=given.k, correct_from=given.correct_from)


def _printed(name: str, evaluation: Evaluation, level: float) -> dict[str, Any]:
    estimates = evaluation.estimates(level)
    print(f"\n{name}: {evaluation.samples} samples\n{estimates_table(estimates, level)}")
    for scorer, count in evaluation.unscored.items():
        print(f"{scorer} says nothing of {count} of {evaluation.samples} samples; they are left out of its figures.")
    figures = {metric: asdict(item) for metric, item in estimates.items()}
    return {"samples": evaluation.samples, "unscored": dict(evaluation.unscored), "metrics": figures}

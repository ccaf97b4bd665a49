"""Run by torchrun: a run with dead groups, watched, recorded, reported and evaluated on every rank; then a failing scorer."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.conformance.runs import extended
from tests.ranks import leave
from trl_grpo_ext.evaluation import EvaluationCallback, Sampling
from trl_grpo_ext.health import HealthCallback
from trl_grpo_ext.report import ReportCallback

PROBLEMS = [{"prompt": text, "solution": "7"} for text in ("say ", "1 ", "7 ", "# ", "a", "y", "s")]


def nothing(completions, **kwargs):
    return [0.0] * len(completions)


def has_solution(completions, solution, **kwargs):
    return [float(gold in text) for text, gold in zip(completions, solution, strict=True)]


def broken(completions, **kwargs):
    raise KeyError("a column")


def watched(model: Path, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The trainer, and what this rank has seen: findings of a training that changes nothing, and figures after it."""
    health = HealthCallback()
    trainer = extended(model, folder, reward=nothing, callbacks=[health, ReportCallback()], max_steps=11)
    trainer.train()
    evaluation = EvaluationCallback(PROBLEMS, [has_solution], Sampling(samples=4, max_new_tokens=6, batch_size=10))
    evaluation.attach(trainer)
    return trainer, {"findings": [vars(item) for item in health.findings], "figures": evaluation.evaluate()}


def main(model: Path, folder: Path) -> None:
    trainer, seen = watched(model, folder)
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(seen))
    failing = EvaluationCallback(PROBLEMS, [broken], Sampling(max_new_tokens=2))
    failing.attach(trainer)
    try:
        failing.evaluate()
    except (ValueError, KeyError) as error:
        assert "a column" in str(error)
    else:
        raise AssertionError("no rank may go on")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

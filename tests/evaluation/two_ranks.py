"""Run by torchrun: evaluates an untrained model, and then with a scorer that fails, on every rank."""

import json
import os
import sys
from pathlib import Path

from tests.conformance.runs import stock
from tests.ranks import leave
from trl_grpo_ext.evaluation import EvaluationCallback, Sampling

PROBLEMS = [{"prompt": text, "solution": "7"} for text in ("say ", "1 ", "7 ", "# ", "a", "y", "s")]


def has_solution(completions, solution, **kwargs):
    return [float(gold in text) for text, gold in zip(completions, solution, strict=True)]


def broken(completions, **kwargs):
    raise KeyError("a column")


def make(model: Path, folder: Path) -> EvaluationCallback:
    callback = EvaluationCallback(PROBLEMS, [has_solution], Sampling(samples=4, max_new_tokens=6, batch_size=10))
    callback.attach(stock(model, folder))
    return callback


def main(model: Path, folder: Path) -> None:
    callback = make(model, folder)
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(callback.evaluate()))
    failing = EvaluationCallback(PROBLEMS, [broken], Sampling(max_new_tokens=2))
    failing.attach(callback.trainer)
    try:
        failing.evaluate()
    except (ValueError, KeyError) as error:
        assert "a column" in str(error)
    else:
        raise AssertionError("no rank may go on")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

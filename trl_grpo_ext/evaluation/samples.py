"""Samples in JSON Lines files: what tells problems apart, and which rows are those of a step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trl_grpo_ext.row_log import Row, read_rows
from trl_grpo_ext.row_log import RowLog as SampleLog
from trl_grpo_ext.row_log import RowsError as SamplesError

__all__ = [
    "Row",
    "SampleLog",
    "SamplesError",
    "by_problem",
    "last_evaluation",
    "problem_key",
    "read_rows",
    "rows_of_step",
]


def problem_key(row: Mapping[str, Any]) -> str:
    """Return what tells problems apart: the column `problem`, else the prompt with the row's `solution`."""
    if row.get("problem") is not None:
        return str(row["problem"])
    return json.dumps([row.get("prompt"), row.get("solution")], sort_keys=True, ensure_ascii=False)


def by_problem(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the samples of each problem, problems and samples in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(problem_key(row), []).append(row)
    return found


def last_evaluation(rows: Iterable[Row]) -> int:
    """Return the highest number in the column `evaluation`; 0 where no row has one."""
    return max((int(row["evaluation"]) for row in rows if row.get("evaluation") is not None), default=0)


def rows_of_step(rows: Sequence[Row], step: int | None = None) -> tuple[list[Row], int | None]:
    """Return the rows of one step, the last by default, and that step; all rows where none has a step.

    Of a step that was evaluated several times (after training the best model is, at the last step) they are those of the
    last evaluation, by the column `evaluation`.

    Raises:
        SamplesError: there are no rows of this step.
    """
    steps = sorted({row["step"] for row in rows if row.get("step") is not None})
    if not steps and step is None:
        return list(rows), None
    wanted = steps[-1] if step is None else step
    found = [row for row in rows if row.get("step") == wanted]
    if not found:
        raise SamplesError(f"no sample of step {wanted}; there are the steps {', '.join(map(str, steps)) or 'none'}.")
    last = last_evaluation(found)
    return [row for row in found if not last or row.get("evaluation") == last], wanted

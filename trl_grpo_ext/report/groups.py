"""Which groups of a run are shown, and which problems changed their verdict. Standard library only; files are streamed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from trl_grpo_ext.report.run_files import json_lines

Row = dict[str, Any]

STEPS, GROUPS, TEXT = 100, 3, 2000


def text_of(value: Any) -> str:
    """Return a prompt or completion as text; messages as lines of "role: content"."""
    if isinstance(value, list):
        return "\n".join(
            f"{item.get('role')}: {item.get('content') or ''}" for item in value if isinstance(item, dict)
        )
    return "" if value is None else str(value)


def shortened(text: str, most: int) -> str:
    """Return a text of at most `most` characters; what is left out is said."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most} more characters)"


def spaced(values: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of the values, evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    if most == 1:
        return [values[-1]]
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def _prompt_key(row: Row) -> str:
    return json.dumps([row.get("prompt"), row.get("injected_prompt")], sort_keys=True)


def _shown(rows: Sequence[Row], most: int) -> Row:
    first = rows[0]
    ordered = sorted(rows, key=lambda row: -(row.get("advantage") or 0.0))
    return {
        "prompt": shortened(text_of(first.get("injected_prompt") or first.get("prompt")), most),
        "solution": shortened(text_of(first.get("solution")), most // 4),
        "completions": [
            {
                "text": shortened(text_of(row.get("completion")), most),
                "reward": row.get("reward"),
                "advantage": row.get("advantage"),
                "rewards": row.get("rewards") or {},
            }
            for row in ordered
        ],
    }


def _spread(rows: Sequence[Row]) -> float:
    rewards = [row["reward"] for row in rows if row.get("reward") is not None]
    return max(rewards) - min(rewards) if rewards else 0.0


def _groups_of_steps(path: Path, steps: frozenset[int]) -> Iterator[tuple[int, list[list[Row]]]]:
    wanted = (row for row in json_lines(path) if row.get("step") in steps)
    for step, rows in groupby(wanted, key=lambda row: row["step"]):
        yield step, [list(group) for _, group in groupby(rows, key=_prompt_key)]


def sampled_groups(path: Path, budget: int) -> dict[str, Any]:
    """Return the groups to browse: `steps` (step, groups), and how many there are of each in the file.

    Of at most 100 evenly spaced steps the 3 groups with the widest rewards, each completion up to 2,000 characters;
    then half as many steps, and half as many characters, until all fits.

    Args:
        path: `completions.jsonl`.
        budget: most bytes as JSON.
    """
    numbers = sorted({row["step"] for row in json_lines(path) if isinstance(row.get("step"), int)})
    most_steps, most_text = STEPS, TEXT
    while True:
        steps = frozenset(spaced(numbers, most_steps))
        shown = []
        for step, groups in _groups_of_steps(path, steps):
            best = sorted(groups, key=lambda rows: -_spread(rows))[:GROUPS]
            shown.append({"step": step, "of": len(groups), "groups": [_shown(rows, most_text) for rows in best]})
        found = {"steps": shown, "all_steps": len(numbers)}
        size = len(json.dumps(found).encode())
        if size <= budget or (most_steps == 1 and most_text <= 50):
            return found if size <= budget else {"steps": [], "all_steps": len(numbers)}
        most_steps, most_text = max(1, most_steps * 2 // 3), max(50, most_text * 2 // 3)


def changes(rows: Iterable[Row], value: Callable[[Row], float | None], most: int = 20) -> dict[str, Any]:
    """Return how the mean value of each problem changed from its first to its last step, or evaluation.

    Rows with an `evaluation` number are told apart by it: one step may have been evaluated twice.

    Returns:
        `better`, `worse`, `same` (numbers of problems seen at several steps) and `largest`: the largest changes with
        prompt, first and last step and mean.
    """
    seen: dict[str, dict[str, Any]] = {}
    for row in rows:
        number, step = value(row), row.get("step")
        if number is None or step is None:
            continue
        name = hashlib.sha256(json.dumps([row.get("prompt"), row.get("solution")]).encode()).hexdigest()[:16]
        when = (row.get("evaluation") or 0, step)
        item = seen.setdefault(
            name, {"prompt": shortened(text_of(row.get("prompt")), 200), "first": when, "values": {}}
        )
        # Of all steps only the first and the last are kept.
        if when not in item["values"]:
            item["values"] = {key: item["values"][key] for key in item["values"] if key == item["first"]}
        item["values"].setdefault(when, []).append(number)
    found = [_change(item) for item in seen.values() if len(item["values"]) == 2]
    ordered = sorted(found, key=lambda item: -abs(item["after"] - item["before"]))
    moved = [item["after"] - item["before"] for item in found]
    return {
        "better": sum(change > 0 for change in moved),
        "worse": sum(change < 0 for change in moved),
        "same": sum(change == 0 for change in moved),
        "largest": [item for item in ordered if item["after"] != item["before"]][:most],
    }


def _change(item: dict[str, Any]) -> Row:
    ((_, first), before), ((_, last), after) = item["values"].items()
    return {"prompt": item["prompt"], "first": first, "last": last, "before": fmean(before), "after": fmean(after)}


def reward_of(row: Row) -> float | None:
    """Return the total reward of a row of `completions.jsonl`."""
    return row.get("reward")


def score_of(row: Row) -> float | None:
    """Return the first score of a row of `evaluation_samples.jsonl`."""
    return next(iter((row.get("scores") or {}).values()), None)

"""What a reward says to answers whose worth is known: the gold answer, a corrupted one, and texts that are none."""

from __future__ import annotations

import inspect
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trl_grpo_ext.rewards.probe_reports import CORRUPTED, GOLD, ProbeReport

Columns = Mapping[str, Any]

# Texts that judges were seen to reward without an answer in them (arXiv 2507.08794).
CONSTANT, MASTER_KEY = "The answer is 42.", "Thought process:"
_LAST_INTEGER = re.compile(r"[0-9]{1,18}(?=[^0-9]*\Z)")


class ProbeError(RuntimeError):
    """A reward function raised on a probe: a model may write such a text, and training would stop there."""


def corrupted(gold: str, others: Sequence[str]) -> str:
    """A wrong answer that looks like `gold`: its last whole number plus one, else the first other gold that differs."""
    match = _LAST_INTEGER.search(gold)
    if match:
        return f"{gold[: match.start()]}{int(match[0]) + 1}{gold[match.end() :]}"
    return next((other for other in others if other.split() != gold.split()), gold[::-1])


def probe_texts(golds: Sequence[str]) -> dict[str, list[str]]:
    """Probe name -> one text per gold answer."""
    rotated = [[*golds[row + 1 :], *golds[:row]] for row in range(len(golds))]
    return {
        GOLD: list(golds),
        CORRUPTED: [corrupted(gold, others) for gold, others in zip(golds, rotated, strict=True)],
        "empty": [""] * len(golds),
        "constant": [CONSTANT] * len(golds),
        "master key": [MASTER_KEY] * len(golds),
    }


def probe_reward(
    reward: Callable[..., Any],
    prompts: Sequence[Any],
    golds: Sequence[str],
    columns: Columns,
    group_size: int = 1,
    judged: bool = True,
) -> ProbeReport:
    """Call `reward` on the probes of every row, as TRL would on conversational rows, and keep what it gave.

    The probes of one row are completions of one prompt, in consecutive rows, repeated until they fill whole groups: so
    rewards that compare the completions of a group can be probed too.

    Args:
        reward: a reward function in TRL's convention.
        prompts: one message list per row.
        golds: the text of the gold answer of each row.
        columns: the other dataset columns, a list each, and TRL's own keywords.
        group_size: completions per prompt in training.
        judged: False for a reward that reads no label.

    Returns:
        The report. A row for which the reward returns None counts in no mean.

    Raises:
        ProbeError: the reward raised; the message names the probe and the error, which is its cause.
    """
    texts = probe_texts(golds)
    copies = -(-len(texts) // group_size) * group_size
    layout = [[texts[name][row] for name in _repeated(list(texts), copies)] for row in range(len(golds))]
    values, seconds = _timed(reward, prompts, layout, columns, texts)
    given = {name: values[place::copies] for place, name in enumerate(texts)}
    reads = tuple(name for name in _parameters(reward) if isinstance(columns.get(name), list))
    return ProbeReport(reward.__name__, given, seconds, reads, judged)


def _repeated(names: Sequence[str], count: int) -> list[str]:
    return [names[place % len(names)] for place in range(count)]


def _parameters(reward: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(reward).parameters)
    except (TypeError, ValueError):
        return []


def _timed(
    reward: Callable[..., Any],
    prompts: Sequence[Any],
    layout: Sequence[Sequence[str]],
    columns: Columns,
    probes: Mapping[str, Sequence[str]],
) -> tuple[list[float], float]:
    """The rewards of all rows, and seconds per row; workers and models are started by a first call of one group."""
    try:
        _call(reward, prompts[:1], layout[:1], _first(columns, 1, len(prompts)))
        began = time.perf_counter()
        values = _call(reward, prompts, layout, columns)
    except Exception as error:
        raise _probe_error(reward, prompts, len(layout[0]), columns, probes, error) from error
    return values, (time.perf_counter() - began) / max(len(values), 1)


def _first(columns: Columns, count: int, rows: int) -> dict[str, Any]:
    return {name: value[:count] if _is_column(value, rows) else value for name, value in columns.items()}


def _is_column(value: Any, rows: int) -> bool:
    return isinstance(value, list) and len(value) == rows


def _call(
    reward: Callable[..., Any], prompts: Sequence[Any], layout: Sequence[Sequence[str]], columns: Columns
) -> list[float]:
    copies = len(layout[0])
    repeated = {
        name: [item for item in value for _ in range(copies)] if _is_column(value, len(prompts)) else value
        for name, value in columns.items()
    }
    completions = [[{"role": "assistant", "content": text}] for texts in layout for text in texts]
    values = reward(
        prompts=[prompt for prompt in prompts for _ in range(copies)],
        completions=completions,
        completion_ids=[[] for _ in completions],
        **repeated,
    )
    return [math.nan if value is None else float(value) for value in values]


def _probe_error(
    reward: Callable[..., Any],
    prompts: Sequence[Any],
    copies: int,
    columns: Columns,
    probes: Mapping[str, Sequence[str]],
    error: Exception,
) -> ProbeError:
    """Name the first probe on which the reward raises alone; all of them when none does."""
    for name, texts in probes.items():
        try:
            _call(reward, prompts, [[text] * copies for text in texts], columns)
        except Exception as found:
            return ProbeError(
                f"{reward.__name__} raised {type(found).__name__} on the probe {name!r} ({found}); return 0 for such texts."
            )
    return ProbeError(f"{reward.__name__} raised {type(error).__name__} on the probes ({error}).")

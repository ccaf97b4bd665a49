"""What a reward says to answers whose worth is known: the gold answer, a corrupted one, and texts that are none."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Columns = Mapping[str, Any]

GOLD, CORRUPTED = "gold", "corrupted"
# Texts that judges were seen to reward without an answer in them (arXiv 2507.08794).
CONSTANT, MASTER_KEY = "The answer is 42.", "Thought process:"
_LAST_INTEGER = re.compile(r"[0-9]{1,18}(?=[^0-9]*\Z)")


class ProbeError(RuntimeError):
    """A reward function raised on a probe: a model may write such a text, and training would stop there."""


@dataclass(frozen=True)
class ProbeReport:
    """What one reward function gave.

    Attributes:
        name: the function's name.
        means: probe name -> mean reward over its rows; NaN when every row was skipped (None).
        spread: standard deviation over all rows of all probes.
        seconds: wall time per completion.
        separates: share of rows whose gold answer got more than its corrupted one.
    """

    name: str
    means: dict[str, float] = field(default_factory=dict)
    spread: float = 0.0
    seconds: float = 0.0
    separates: float = 0.0

    @property
    def is_flagged(self) -> bool:
        """Whether fewer than half of the gold answers got more than their corrupted twins."""
        return not self.separates >= 0.5


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
    reward: Callable[..., Any], prompts: Sequence[Any], golds: Sequence[str], columns: Columns
) -> ProbeReport:
    """Call `reward` once per probe, as TRL would on conversational rows, and summarise what it gave.

    Args:
        reward: a reward function in TRL's convention.
        prompts: one message list per row.
        golds: the text of the gold answer of each row.
        columns: the other dataset columns.

    Returns:
        The report. A row for which the reward returns None counts in no mean.

    Raises:
        ProbeError: the reward raised; the message names the probe and the error, which is its cause.
    """
    given: dict[str, list[float]] = {}
    began = time.perf_counter()
    for name, texts in probe_texts(golds).items():
        given[name] = _call(reward, name, prompts, texts, columns)
    seconds = (time.perf_counter() - began) / max(len(golds) * len(given), 1)
    better = [gold > wrong for gold, wrong in zip(given[GOLD], given[CORRUPTED], strict=True)]
    finite = [value for values in given.values() for value in values if math.isfinite(value)]
    return ProbeReport(
        name=reward.__name__,
        means={name: _mean(values) for name, values in given.items()},
        spread=statistics.pstdev(finite) if finite else 0.0,
        seconds=seconds,
        separates=sum(better) / max(len(better), 1),
    )


def _call(
    reward: Callable[..., Any], probe: str, prompts: Sequence[Any], texts: Sequence[str], columns: Columns
) -> list[float]:
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    try:
        values = reward(prompts=list(prompts), completions=completions, completion_ids=[[] for _ in texts], **columns)
        return [math.nan if value is None else float(value) for value in values]
    except Exception as error:
        raise ProbeError(
            f"{reward.__name__} raised {type(error).__name__} on the probe {probe!r} ({error}); return 0 for such texts."
        ) from error


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def probe_table(reports: Sequence[ProbeReport]) -> str:
    """The reports as text, one line each; a reward that does not tell gold from corrupted is marked."""
    probes = list(reports[0].means) if reports else []
    titles = ["reward", *probes, "spread", "ms/completion", "gold > corrupted", ""]
    rows = [
        [
            report.name,
            *(f"{report.means[probe]:.3f}" for probe in probes),
            f"{report.spread:.3f}",
            f"{1000 * report.seconds:.3f}",
            f"{report.separates:.0%}",
            "DOES NOT SEPARATE" if report.is_flagged else "",
        ]
        for report in reports
    ]
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [titles, *rows]
    )

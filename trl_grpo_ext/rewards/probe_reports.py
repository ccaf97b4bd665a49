"""What a reward gave to probes, in figures and as a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

GOLD, CORRUPTED = "gold", "corrupted"
NO_ANSWERS = ("empty", "constant", "master key")


@dataclass(frozen=True)
class ProbeReport:
    """What one reward function gave.

    Attributes:
        name: the function's name.
        given: probe name -> its rewards, one per row; NaN for a row that was skipped (None).
        seconds: wall time per completion, after a first call that is not counted.
        reads: the columns that the function names as its arguments.
        judged: False for a reward that reads no label, of which separating is not asked.
    """

    name: str
    given: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float = 0.0
    reads: tuple[str, ...] = ()
    judged: bool = True

    @property
    def means(self) -> dict[str, float]:
        """Probe name -> mean reward over its rows; NaN when every row was skipped."""
        return {name: _mean(values) for name, values in self.given.items()}

    @property
    def spread(self) -> float:
        """Standard deviation over all rows of all probes."""
        finite = [value for values in self.given.values() for value in values if math.isfinite(value)]
        return statistics.pstdev(finite) if finite else 0.0

    @property
    def skipped(self) -> float:
        """Share of the rows of all probes that got no reward."""
        values = [value for values in self.given.values() for value in values]
        return sum(math.isnan(value) for value in values) / max(len(values), 1)

    @property
    def separates(self) -> float:
        """Share of rows whose gold answer got more than its corrupted one."""
        better = [gold > wrong for gold, wrong in zip(self.given[GOLD], self.given[CORRUPTED], strict=True)]
        return sum(better) / max(len(better), 1)

    @property
    def overpaid(self) -> str:
        """The first text without an answer that gets at least as much as gold answers do, on average; "" for none."""
        means = self.means
        return next((name for name in NO_ANSWERS if means[name] >= means[GOLD]), "")

    @property
    def verdict(self) -> str:
        """What is wrong: fewer than half of the gold answers beat their corrupted twins, or no answer pays as well."""
        if not self.judged:
            return "reads no label"
        if not self.separates >= 0.5:
            return "DOES NOT SEPARATE"
        return f"PAYS {self.overpaid!r}" if self.overpaid else ""

    @property
    def is_flagged(self) -> bool:
        """Whether something is wrong."""
        return self.judged and bool(self.verdict)


def total_report(reports: Sequence[ProbeReport], weights: Sequence[float]) -> ProbeReport:
    """The weighted sum of the judged rewards, as training sees it: a skipped reward adds nothing to its row."""
    judged = [(report, weight) for report, weight in zip(reports, weights, strict=True) if report.judged]
    names = list(judged[0][0].given) if judged else []
    given = {
        name: [_weighted(row, judged) for row in zip(*(report.given[name] for report, _ in judged), strict=True)]
        for name in names
    }
    return ProbeReport("total", given, sum(report.seconds for report in reports), (), bool(judged))


def _weighted(values: Sequence[float], judged: Sequence[tuple[ProbeReport, float]]) -> float:
    terms = [weight * value for value, (_, weight) in zip(values, judged, strict=True) if math.isfinite(value)]
    return math.fsum(terms) if terms else math.nan


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def probe_table(reports: Sequence[ProbeReport]) -> str:
    """The reports as text, one line each; a reward that does not tell gold from corrupted is marked."""
    probes = list(reports[0].given) if reports else []
    titles = ["reward", *probes, "spread", "skipped", "ms/completion", "gold > corrupted", "reads", ""]
    rows = [
        [
            report.name,
            *(f"{report.means[probe]:.3f}" for probe in probes),
            f"{report.spread:.3f}",
            f"{report.skipped:.0%}",
            f"{1000 * report.seconds:.3f}",
            f"{report.separates:.0%}",
            ", ".join(report.reads) or "-",
            report.verdict,
        ]
        for report in reports
    ]
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [titles, *rows]
    )

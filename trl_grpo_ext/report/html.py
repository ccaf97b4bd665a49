"""One self-contained HTML file about a run: it opens offline and loads nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from string import Template

from trl_grpo_ext.report import charts, deltas, page_parts
from trl_grpo_ext.report.groups import changes, reward_of, sampled_groups, score_of
from trl_grpo_ext.report.run_files import COMPLETIONS, SAMPLES, Run, json_lines, load_run

FOLDER = Path(__file__).parent / "page"
# The whole page stays below 10 MB; plotly's script takes 4.8 of them.
BUDGET = 3_000_000


def _charts(run: Run, control: Run | None) -> str:
    drawn = charts.panels(run.history, control.history if control else ())
    drawings = {title: charts.drawing(item, f"chart-{place}") for place, (title, item) in enumerate(drawn.items())}
    return page_parts.charts_part(drawings)


def report_page(run: Run, control: Run | None = None, tables: Mapping[str, page_parts.Table] | None = None) -> str:
    """Return the page of a run, with the curves of a control run beside its own, and with further tables.

    Raises:
        ImportError: plotly is not installed.
    """
    if find_spec("plotly") is None:
        raise ImportError("the report needs plotly for its curves: pip install 'trl-grpo-ext[report]'")
    groups = sampled_groups(run.folder / COMPLETIONS, BUDGET)
    rewards = changes(json_lines(run.folder / COMPLETIONS), reward_of)
    verdicts = changes(json_lines(run.folder / SAMPLES), score_of)
    return Template((FOLDER / "page.html").read_text(encoding="utf-8")).substitute(
        title=page_parts.escape(f"GRPO run {run.folder.resolve().name}"),
        style=(FOLDER / "style.css").read_text(encoding="utf-8"),
        script=charts.script(),
        summary=page_parts.summary(run, control),
        findings=page_parts.findings_part(run),
        charts=_charts(run, control),
        groups=page_parts.groups_part(groups),
        changes=page_parts.changes_part("Held-out problems whose score changed", verdicts)
        + page_parts.changes_part("Training prompts whose reward changed", rewards),
        tables=page_parts.tables_part(tables or {})
        + page_parts.deltas_part(deltas.summaries(run.folder), *deltas.tensor_rows(run.folder)),
        settings=page_parts.settings_part(run),
        data=page_parts.script_data(groups),
        groups_script=(FOLDER / "groups.js").read_text(encoding="utf-8"),
    )


def write_report(
    folder: str | Path,
    output: str | Path | None = None,
    control: str | Path | None = None,
    tables: Mapping[str, page_parts.Table] | None = None,
) -> Path:
    """Write the report of a run and return its path.

    Args:
        folder: the output folder of the run.
        output: the file; `report.html` in the folder by default.
        control: the output folder of a control run, whose curves are drawn dotted.
        tables: more to show, title -> (header, rows); none by default.

    Raises:
        RunError: a folder without a saved run.
        ImportError: plotly is not installed.
        OSError: the file can't be written; one that stood there is as it was.
    """
    page = report_page(load_run(folder), load_run(control) if control is not None else None, tables)
    path = Path(output) if output is not None else Path(folder) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8", errors="replace")
    os.replace(temporary, path)
    return path

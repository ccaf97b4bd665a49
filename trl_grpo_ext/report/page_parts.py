"""The parts of the report page as HTML. Whatever comes from a run is escaped. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from trl_grpo_ext.report.deltas import TENSOR_COLUMNS
from trl_grpo_ext.report.run_files import Run

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return an HTML table of texts; it scrolls by itself where it is wider than the page."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def findings_part(run: Run) -> str:
    """Return what the health rules have found in a run; nothing without findings."""
    if not run.findings:
        return ""
    items = "".join(
        f'<div class="finding"><strong>{escape(str(item.get("rule")))}</strong> (step {escape(str(item.get("step")))}): '
        f"{escape(str(item.get('seen')))} {escape(str(item.get('change')))}</div>"
        for item in run.findings
    )
    return f"<h2>Health</h2>{items}"


def charts_part(drawings: Mapping[str, str]) -> str:
    """Return the panels, title -> drawing."""
    return "".join(
        f'<section class="chart"><h3>{escape(title)}</h3>{drawing}</section>' for title, drawing in drawings.items()
    )


def groups_part(groups: Mapping[str, Any]) -> str:
    """Return the place where groups are browsed; nothing where there are none."""
    if not groups["steps"]:
        return ""
    shown = len(groups["steps"])
    told = f"{shown} of {groups['all_steps']} steps; of each the groups with the widest rewards."
    return (
        f'<h2>Groups</h2><p class="dim">{told}</p><div class="controls">'
        '<button type="button" id="earlier">Earlier</button><label>Step <select id="step"></select></label>'
        '<button type="button" id="later">Later</button>'
        '<label>Group <select id="group-number"></select></label></div><div id="group" aria-live="polite"></div>'
    )


def changes_part(title: str, found: Mapping[str, Any]) -> str:
    """Return which problems changed; nothing where none was seen at two steps."""
    if not found["better"] + found["worse"] + found["same"]:
        return ""
    rows = [
        [item["prompt"], f"{item['before']:.3g} (step {item['first']})", f"{item['after']:.3g} (step {item['last']})"]
        for item in found["largest"]
    ]
    told = f"Better: {found['better']}, worse: {found['worse']}, the same: {found['same']}."
    listed = table(["prompt", "first", "last"], rows) if rows else ""
    told += " The largest changes:" if rows else ""
    return f'<h2>{escape(title)}</h2><p class="dim">{told}</p>{listed}'


def tables_part(tables: Mapping[str, Table]) -> str:
    """Return further tables, title -> (header, rows)."""
    return "".join(f"<h2>{escape(title)}</h2>{table(header, rows)}" for title, (header, rows) in tables.items())


def deltas_part(summaries: Mapping[str, Mapping[str, Any]], last: str, tensors: Sequence[Sequence[str]]) -> str:
    """Return the deltas of a run, and, folded, the tensors of the last one; nothing without a delta."""
    if not summaries:
        return ""
    header = ["delta", "bytes", "of the whole", "bits per weight", "weights changed", "exact", "codecs", "quality"]
    listed = table(header, [_delta_row(name, found) for name, found in summaries.items()])
    base = list(summaries.values())[-1]["base"]
    told = f"Of the base {base}. A delta needs that very base."
    folded = f"<details><summary>Tensors ({escape(last)})</summary>{table(TENSOR_COLUMNS, tensors)}</details>"
    return f'<h2>Delta of the weights</h2><p class="dim">{escape(told)}</p>{listed}{folded if tensors else ""}'


def _delta_row(name: str, found: Mapping[str, Any]) -> list[str]:
    share = found["delta_bytes"] / max(found["full_bytes"], 1)
    codecs = ", ".join(f"{count} {codec}" for codec, count in found["codecs"].items())
    quality = json.dumps(found["quality"]) if found["quality"] else "not measured"
    figures = [
        f"{found['delta_bytes']:,}",
        f"{share:.1%}",
        f"{found['bits_per_weight']:.3f}",
        f"{found['density']:.1%}",
    ]
    return [name, *figures, "yes" if found["lossless"] else "no", codecs, quality]


def settings_part(run: Run) -> str:
    """Return results, configuration and versions, each folded."""
    parts = [("versions", run.versions), *run.settings.items()]
    folded = "".join(
        f"<details><summary>{escape(name)}</summary>"
        + table(
            ["name", "value"],
            [[key, value if isinstance(value, str) else json.dumps(value)] for key, value in items.items()],
        )
        + "</details>"
        for name, items in parts
        if items
    )
    return f"<h2>Settings and results</h2>{folded}" if folded else ""


def summary(run: Run, control: Run | None) -> str:
    """Return one line about a run."""
    parts = [f"{run.state.get('global_step', 0)} of {run.state.get('max_steps', 0)} steps"]
    rewards = [entry["reward"] for entry in run.history if "reward" in entry]
    if rewards:
        parts.append(f"reward {rewards[0]:.3f} at first, {rewards[-1]:.3f} at last")
    best = run.state.get("best_model_checkpoint")
    if best:
        parts.append(
            f"best checkpoint {str(best).replace(chr(92), '/').rsplit('/', 1)[-1]} ({run.state.get('best_metric'):.4g})"
        )
    if control is not None:
        parts.append(f"dotted: control run {control.folder.resolve().name}")
    return escape("; ".join(parts))


def script_data(value: Any) -> str:
    """Return JSON that can stand inside a script element: nothing in it can close the element."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

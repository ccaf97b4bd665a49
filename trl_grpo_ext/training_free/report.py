"""What a run did, as data and as a page: rewards and cost by step, every decision, what is pending."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_grpo_ext.experience import ExperienceLibrary, Lesson
from trl_grpo_ext.training_free.budget import Spending
from trl_grpo_ext.training_free.prompts import system_prompt

LIBRARY_FILE, REPORT_FILE, PAGE_FILE = "library.db", "report.json", "report.md"
LESSONS_FILE, PROMPT_FILE, RUN_FILE = "lessons.json", "system_prompt.txt", "run.db"
EXPERIENCES_FILE = "experiences.json"


@dataclass(frozen=True)
class Progress:
    """Where a run is, for a live display.

    Args:
        step: the step at hand, from 0.
        steps: how many there are.
        spent: calls, tokens and money so far.
        lessons: size of the library.
        rewards: mean reward of each step that is done.
    """

    step: int
    steps: int
    spent: Spending
    lessons: int
    rewards: tuple[float, ...] = ()


@dataclass
class Report:
    """What a run did.

    Args:
        status: "finished"; "degraded": finished, but reflections are pending; "stopped": a budget was reached;
            "interrupted": by Ctrl-C or an error. All but the first continue where they were when `train` is called
            again.
        reason: of a status other than "finished", in one sentence.
        fingerprint: of settings, models, reward and data.
        gated: whether candidates had to pass the acceptance gate.
        steps: one report per step that is done.
        pending: groups whose comparison failed, with stage, error and attempts.
        spent: calls, tokens and money, over the run and its resumes.
        lessons: text by id, of the library at the end.
    """

    status: str
    reason: str
    fingerprint: str
    gated: bool
    steps: list[dict[str, Any]] = field(default_factory=list)
    pending: list[dict[str, Any]] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)
    lessons: dict[str, str] = field(default_factory=dict)

    @property
    def rewards(self) -> list[float]:
        """Mean reward of each step that had rollouts."""
        return [step["reward"] for step in self.steps if step["rollouts"]]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        return dict(vars(self))


def step_reports(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the reports of the steps, without what only the journal needs."""
    return [{"step": record["step"], **record["report"]} for record in records]


def pending_of(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what is pending after the last step, without the rollouts."""
    last = records[-1]["pending"] if records else []
    return [{name: value for name, value in item.items() if name != "rollouts"} for item in last]


def page(report: Report) -> str:
    """Return the report as Markdown."""
    lines = [f"# Training-Free GRPO: {report.status}", ""]
    lines += [report.reason, ""] if report.reason else []
    if not report.gated:
        lines += ["There was no acceptance gate: nothing here is evidence that the lessons help.", ""]
    lines += ["| step | reward | rollouts | failed | compared | operations | accepted | lessons retired | pending |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    lines += [_row(step) for step in report.steps]
    lines += ["", "## Decisions", ""]
    lines += [_decision(step) for step in report.steps if step["candidate"]] or ["No candidate library was proposed."]
    lines += ["", "## Refused operations", ""]
    lines += [_refused(step["step"], item) for step in report.steps for item in step["rejected"]] or ["None."]
    lines += ["", "## Pending reflections", ""]
    lines += [f"- problem {item['problem']}, {item['stage']}: {item['error']}" for item in report.pending] or ["None."]
    lines += ["", "## Lessons", "", *([f"- {text}" for text in report.lessons.values()] or ["None."])]
    spent = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in report.spent.items())
    return "\n".join([*lines, "", "## Spent", "", spent, ""])


def _row(step: Mapping[str, Any]) -> str:
    reward = f"{step['reward']:.4f}" if step["rollouts"] else "-"
    cells = [step["step"], reward, step["rollouts"], step["failed"], f"{step['groups_compared']}/{step['groups']}"]
    cells += [len(step["candidate"]), "yes" if step["accepted"] else "no", len(step["retired"]), step["pending"]]
    return "| " + " | ".join(map(str, cells)) + " |"


def _decision(step: Mapping[str, Any]) -> str:
    gate = step["gate"]
    if gate is None:
        return f"- step {step['step']}: accepted without a gate"
    verdict = "accepted" if step["accepted"] else "kept the old library"
    return (
        f"- step {step['step']}: {verdict}; effect {gate['effect']:+.4f} in [{gate['lower']:+.4f}, "
        f"{gate['upper']:+.4f}], {gate['pairs']} pairs, minimum detectable effect "
        f"{gate['minimum_detectable_effect']:.4f}: {gate['reason']}"
    )


def _refused(step: int, item: Mapping[str, Any]) -> str:
    return f"- step {step}: {item['kind']} {item['text'] or ' '.join(item['ids'])!r}: {item['reason']}"


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader sees the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_results(
    folder: Path, report: Report, library: ExperienceLibrary, lessons: Sequence[Lesson], template: str | None
) -> None:
    """Write report.json, report.md, experiences.json, lessons.json and system_prompt.txt beside the library.

    Args:
        folder: the result folder.
        report: the report.
        library: exported whole to lessons.json, in the library's own JSON form.
        lessons: those of the run's domain, for the system prompt and, as {"G0": "..."}, for experiences.json.
        template: what surrounds them there.
    """
    write_text(folder / REPORT_FILE, json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n")
    write_text(folder / PAGE_FILE, page(report))
    write_text(folder / PROMPT_FILE, system_prompt(lessons, template))
    numbered = {f"G{number}": lesson.text for number, lesson in enumerate(lessons)}
    write_text(folder / EXPERIENCES_FILE, json.dumps(numbered, indent=1, ensure_ascii=False) + "\n")
    library.export_file(folder / LESSONS_FILE)

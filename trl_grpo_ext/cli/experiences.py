"""`grpo-ext experiences <command> LIBRARY`: look at an experience library, and keep it in order."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from trl_grpo_ext._terminal import visible
from trl_grpo_ext.cli.experience_arguments import parser
from trl_grpo_ext.experience import (
    Episode,
    ExperienceError,
    ExperienceLibrary,
    Lesson,
    Stored,
    distillation_rows,
    read_prompts,
    write_distillation_rows,
)

WIDTH = 100


def main(arguments: Sequence[str]) -> int:
    """Run one command; 0: done, 1: refused, with the reason on the error output."""
    given = parser().parse_args(list(arguments))
    wrong = given.check(given) if "check" in given else None
    if wrong:
        given.parser.error(wrong)
    try:
        with ExperienceLibrary(given.library, create=given.command in ("add", "import", "merge")) as library:
            COMMANDS[given.command](library, given)
    except (ExperienceError, OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 1
    return 0


def shorten(text: str, width: int = WIDTH) -> str:
    """Return a text on one line of at most `width` characters, without what a terminal would obey."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= width else f"{line[: width - 3]}..."


def line(item: Stored) -> str:
    """Return a record as one line of a listing."""
    record = item.record
    if isinstance(record, Episode):
        return f"{item.id}  {record.advantage:+.3f}  {shorten(f'{record.prompt} -> {record.response}')}"
    return f"{item.id}  lesson  {shorten(record.text)}"


def record_data(item: Stored) -> dict[str, Any]:
    """Return a record as `--json` prints it."""
    record = item.record
    plain: dict[str, Any] = {"id": item.id, "timestamp": record.timestamp, "metadata": dict(record.metadata)}
    if isinstance(record, Episode):
        plain |= {"prompt": record.prompt, "response": record.response}
        plain |= {"advantage": record.advantage, "reward": record.reward}
    else:
        plain["text"] = record.text
    return plain | {"uses": item.uses, "gain": item.gain}


def _print_records(items: list[Stored], as_json: bool) -> None:
    for item in items:
        print(json.dumps(record_data(item), ensure_ascii=False) if as_json else line(item))


def _stats(library: ExperienceLibrary, given: argparse.Namespace) -> None:
    found = library.stats()
    if given.json:
        plain = vars(found) | {"lessons": library.lesson_count(), "version": library.version}
        rates = {"storage_efficiency": found.storage_efficiency(), "retention_rate": found.retention_rate()}
        print(json.dumps(plain | rates))
    else:
        print(f"{found.summary()}\nLessons: {library.lesson_count()}\nVersion: {library.version}")


def _coverage(library: ExperienceLibrary, given: argparse.Namespace) -> None:
    rows = library.coverage(given.minimum, given.limit)
    if given.json:
        for row in rows:
            print(json.dumps(vars(row), ensure_ascii=False))
        return
    print("episodes  rollouts  mean reward  spread  prompt")
    for row in rows:
        mean, spread = ("-" if value is None else f"{value:.3f}" for value in (row.mean_reward, row.spread))
        print(f"{row.episodes:8}  {row.rollouts:8}  {mean:>11}  {spread:>6}  {shorten(row.prompt)}")


def _list(library: ExperienceLibrary, given: argparse.Namespace) -> None:
    items = []
    for item in library.records(given.kind, given.where):
        items.append(item)
        if len(items) == given.limit:
            break
    _print_records(items, given.json)


def _search(library: ExperienceLibrary, given: argparse.Namespace) -> None:
    found = library.retrieve_episodes(given.query, given.limit, where=given.where, training=True, same_prompt=True)
    lessons = library.search_lessons(given.query, given.limit, where=given.where)
    _print_records([library.get(item.id) for item in [*lessons, *found]], given.json)


def _add(library: ExperienceLibrary, given: argparse.Namespace) -> None:
    metadata = given.metadata or {}
    if given.lesson is not None:
        print(*library.add(Lesson(given.lesson, metadata=metadata)))
    else:
        print(*library.add(Episode(given.prompt, given.response, given.advantage, metadata=metadata)))


def _tag(library: ExperienceLibrary, given: argparse.Namespace) -> None:
    library.tag(given.ids, **given.metadata)


def _prune(library: ExperienceLibrary, given: argparse.Namespace) -> None:
    print(f"{library.prune(max_age=given.max_age, max_size=given.max_size)} episodes pruned")


def _history(library: ExperienceLibrary, given: argparse.Namespace) -> None:
    print("version  time                 added  retired  changed  cause")
    for row in library.history(given.limit):
        time = datetime.fromtimestamp(row.created).isoformat(" ", "seconds")
        step = "" if row.step is None else f" (step {row.step})"
        print(f"{row.version:7}  {time}  {row.added:5}  {row.retired:7}  {row.changed:7}  {row.cause}{step}")


def _diff(library: ExperienceLibrary, given: argparse.Namespace) -> None:
    found = library.diff(given.earlier, given.later)
    for sign, names in (("+", found.added), ("-", found.retired)):
        for name in names:
            print(f"{sign} {name}  {shorten(library.text_of(name))}")
    for name, columns in found.changed.items():
        changes = ", ".join(f"{column}: {before!r} -> {after!r}" for column, (before, after) in columns.items())
        print(f"~ {name}  {changes}")


def _rollback(library: ExperienceLibrary, given: argparse.Namespace) -> None:
    library.rollback(given.version)
    print(f"version {library.version} is what version {given.version} was")


def _export(library: ExperienceLibrary, given: argparse.Namespace) -> None:
    if given.format == "snapshot":
        library.save_snapshot(given.output)
        print(f"{len(library)} records and their history written to {given.output}")
    else:
        print(f"{library.export_file(given.output, given.format)} records written to {given.output}")


def _import(library: ExperienceLibrary, given: argparse.Namespace) -> None:
    before, pruned = len(library), library.stats().total_pruned
    read = len(library.import_file(given.input))
    gone = library.stats().total_pruned - pruned
    print(f"{read} records read, {len(library) - before + gone} of them new, {gone} pruned by age or limits")


def _merge(library: ExperienceLibrary, given: argparse.Namespace) -> None:
    if Path(given.other).resolve() == Path(given.library).resolve():
        raise ValueError(f"{given.other} is the same library.")
    print(f"{library.merge(given.other)} records were new")


def _distill(library: ExperienceLibrary, given: argparse.Namespace) -> None:
    prompts = read_prompts(given.prompts, given.column or "prompt") if given.prompts else None
    options = {"where": given.where, "messages": given.messages, "token_budget": given.token_budget}
    rows = distillation_rows(library, prompts, count_tokens=_counter(given.tokenizer), **options)
    write_distillation_rows(given.output, rows)
    print(f"{len(rows)} rows of prompt and privileged_context written to {given.output}")


def _counter(name: str | None) -> Callable[[str], int] | None:
    if name is None:
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"--tokenizer: {name} can't be loaded ({' '.join(str(error).split())}).") from error
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


COMMANDS = {
    "stats": _stats,
    "coverage": _coverage,
    "list": _list,
    "search": _search,
    "add": _add,
    "tag": _tag,
    "prune": _prune,
    "history": _history,
    "diff": _diff,
    "rollback": _rollback,
    "export": _export,
    "import": _import,
    "merge": _merge,
    "distill": _distill,
}

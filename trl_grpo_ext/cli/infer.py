"""`grpo-ext infer`: answers with the lessons of a library in the prompt."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_grpo_ext._terminal import visible
from trl_grpo_ext.cli.infer_arguments import check, parser
from trl_grpo_ext.experience import ExperienceError
from trl_grpo_ext.training_free import (
    PROMPT_COLUMNS,
    BackendError,
    BudgetReached,
    answers,
    config_of,
    json_rows,
    model_settings,
    overridden,
    read_json_rows,
    read_lessons,
    read_mapping,
)


def main(arguments: Sequence[str]) -> int:
    """Answer; returns the status that the description lists."""
    found = parser()
    given = found.parse_args(list(arguments))
    wrong = check(given)
    if wrong:
        found.error(wrong)
    try:
        return _answer(given)
    except KeyboardInterrupt:
        return 130
    except (BackendError, BudgetReached, ExperienceError, ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _answer(given: argparse.Namespace) -> int:
    values, folder = _settings(given)
    policy, config = model_settings(values.get("policy"), "policy", folder), config_of(values)
    library = given.library or values.get("output_dir")
    lessons = [] if given.no_lessons else read_lessons(Path(_path(library)), config.domain)
    rows = _rows(given)
    prompts = [_prompt(row, number, given.column) for number, row in enumerate(rows)]
    found = answers(policy.load(), prompts, lessons, config)
    return _write_rows(rows, found, given.output) if given.input else _print(found[0])


def _settings(given: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """What stands in the run's file, or the same of the flags, and the folder of relative paths."""
    if given.config:
        return read_mapping(given.config, given.overrides), given.config.absolute().parent
    flags = {"model": given.model, "base_url": given.base_url, "api_key_env": given.api_key_env}
    policy = {name: value for name, value in flags.items() if value is not None}
    return overridden({"policy": policy}, given.overrides), Path.cwd()


def _path(library: Any) -> str | Path:
    if not isinstance(library, str | Path):
        raise ValueError(f"output_dir must be a text, not {library!r}; correct it, or give --library.")
    return library


def _rows(given: argparse.Namespace) -> list[Any]:
    if given.input == "-":
        return json_rows(sys.stdin.read(), "the standard input")
    if given.input:
        return read_json_rows(Path(given.input), "--input")
    text = sys.stdin.read() if given.query is None else given.query
    if not text.strip():
        raise ValueError("there is no question; give it as argument, on the standard input, or in rows of --input.")
    return [{"prompt": text}]


def _prompt(row: Any, number: int, column: str | None) -> Any:
    names = [column] if column else PROMPT_COLUMNS
    found = next((row[name] for name in names if row.get(name)), None) if isinstance(row, Mapping) else None
    messages = isinstance(found, list) and all(isinstance(item, dict) and _is_message(item) for item in found)
    if not isinstance(found, str) and not messages:
        raise ValueError(
            f"--input: row {number} must be an object with a text or messages in {', '.join(names)}, not {row!r:.100}."
        )
    return found


def _is_message(item: Mapping[str, Any]) -> bool:
    return isinstance(item.get("role"), str) and isinstance(item.get("content"), str)


def _print(answer: str | BackendError) -> int:
    if isinstance(answer, BackendError):
        raise answer
    print(visible(answer) if sys.stdout.isatty() else answer)
    return 0


def _write_rows(rows: Sequence[Any], found: Sequence[str | BackendError], output: Path | None) -> int:
    lines = [
        json.dumps(row | ({"error": str(item)} if isinstance(item, BackendError) else {"response": item}))
        for row, item in zip(rows, found, strict=True)
    ]
    if output is None:
        print("\n".join(lines))
    else:
        output.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    failed = sum(isinstance(item, BackendError) for item in found)
    if failed:
        print(f"error: {failed} of {len(rows)} calls failed; their rows have an error", file=sys.stderr)
    return int(failed > 0)

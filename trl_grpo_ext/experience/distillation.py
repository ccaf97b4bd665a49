"""(prompt, lessons) rows for context distillation: the model learns to answer without lessons as it does with them.

The columns are those of TRL's `trl.experimental.sdft.SDFTTrainer` (self-distillation, arXiv 2601.19897): the student
sees `prompt`, the teacher, which is the same model, `privileged_context` as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_grpo_ext.experience.errors import ExperienceError
from trl_grpo_ext.experience.injection import Prompt, check_prompt, prompt_text
from trl_grpo_ext.experience.interchange import write_json
from trl_grpo_ext.experience.library import ExperienceLibrary
from trl_grpo_ext.experience.prompting import lessons_text
from trl_grpo_ext.experience.records import Episode, Lesson


def distillation_rows(
    library: ExperienceLibrary,
    prompts: Iterable[Prompt] | None = None,
    *,
    where: Mapping[str, Any] | None = None,
    token_budget: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
    messages: bool = False,
) -> list[dict[str, Any]]:
    """Return one row per prompt: `prompt`, and the lessons for it as `privileged_context`.

    The text of the lessons is the one that training and serving inject. A prompt for which no lesson fits the budget is
    left out: there is nothing to distil.

    Args:
        library: an `ExperienceLibrary` with lessons.
        prompts: texts or message lists, each once; by default the prompts of the library's episodes, the oldest first.
        where: metadata filter of the lessons, and of the episodes when the prompts come from them.
        token_budget: most tokens of the lessons of one prompt; all lessons by default.
        count_tokens: tokens of a text, by the model's tokenizer; needed with a budget.
        messages: give a prompt that is a text as a message of the user, for chat models.

    Raises:
        ExperienceError: the library has no lesson (of this filter), or no prompt to go with them.
        TypeError: a prompt that is neither text nor messages of text.
        ValueError: an empty prompt, one that does not end with the user's turn, which TRL's trainer refuses, texts and
            messages mixed without `messages`; a budget without `count_tokens`.
    """
    if not library.retrieve_lessons(where=where):
        raise ExperienceError(
            f"{library.name} has no lessons{_of(where)}: there is nothing to distil; add or learn some."
        )
    options = {"where": where, "token_budget": token_budget, "count_tokens": count_tokens}
    rows: list[dict[str, Any]] = []
    for prompt in _distinct(_episode_prompts(library, where) if prompts is None else prompts):
        lessons = library.retrieve_lessons(prompt_text(prompt), **options)  # type: ignore[arg-type]
        context = lessons_text([item.record for item in lessons if isinstance(item.record, Lesson)])
        if context:
            rows.append({"prompt": _as_messages(prompt) if messages else prompt, "privileged_context": context})
    if not rows:
        raise ExperienceError(
            f"{library.name}: no row is left. Give prompts, since the library's episodes have none{_of(where)}, or raise "
            "token_budget so that one lesson fits."
        )
    if len({type(row["prompt"]) for row in rows}) > 1:
        raise ValueError(
            "some prompts are texts and some are messages; give messages=True to make all of them messages."
        )
    return rows


def _of(where: Mapping[str, Any] | None) -> str:
    return f" with {dict(where)}" if where else ""


def _episode_prompts(library: ExperienceLibrary, where: Mapping[str, Any] | None) -> Iterator[Prompt]:
    return (item.record.prompt for item in library.records("episode", where) if isinstance(item.record, Episode))


def _distinct(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    seen: set[str] = set()
    for prompt in prompts:
        _check(prompt)
        key = json.dumps(prompt, sort_keys=True)
        if key not in seen:
            seen.add(key)
            yield prompt


def _check(prompt: Any) -> None:
    check_prompt(prompt)
    if not prompt_text(prompt).strip():
        raise ValueError(f"a prompt is empty: {prompt!r}; leave it out.")
    if not isinstance(prompt, str) and prompt[-1]["role"] != "user":
        role = prompt[-1]["role"]
        raise ValueError(f"a prompt must end with the user's turn, this one ends with {role!r}: {str(prompt)[:200]}.")


def _as_messages(prompt: Prompt) -> Prompt:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def write_distillation_rows(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON Lines in one step, for `datasets.load_dataset("json", data_files=...)`.

    Raises:
        OSError: the file can't be written; one that stood there is as it was.
    """
    write_json(path, (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_prompts(path: str | os.PathLike[str], column: str = "prompt") -> list[Prompt]:
    """Return one column of a JSON Lines file, or of a JSON list of rows.

    Raises:
        OSError: the file can't be read.
        ValueError: neither of the two forms, or a row without the column; says which one.
    """
    text = Path(path).read_text(encoding="utf-8")
    rows = _parsed(text, str(path))
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or column not in row:
            there = f"it has {', '.join(row)}" if isinstance(row, dict) else f"it is no object: {str(row)[:80]}"
            raise ValueError(f"{path}: row {number} has no column {column!r}; {there}.")
    return [row[column] for row in rows]


def _parsed(text: str, name: str) -> list[Any]:
    try:
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        # Not `splitlines`, which also breaks inside texts.
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is neither JSON Lines nor a JSON list: {error}.") from error

"""The samples of a model folder for `grpo-ext evaluate`, with or without experiences in its prompts."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from trl_grpo_ext.evaluation import OWN_COLUMNS, ModelFolder, SampleLog, Sampling, problem_key
from trl_grpo_ext.experience import ExperienceLibrary, Selector, TokenCounter, inject, read_prompts

Row = dict[str, Any]


def model_rows(path: Path, with_experiences: bool, given: argparse.Namespace) -> list[Row]:
    """Return the samples of a model; those that an earlier, killed run has drawn are not drawn again.

    Raises:
        OSError: a file can't be read or written.
        ValueError: data, settings or files that do not fit.
    """
    sampling, problems = sampling_of(given), problems_of(given)
    model = _opened(path, given.prompt_format)
    prompts = with_lessons(model, problems, given) if with_experiences else None
    log = SampleLog(Path(given.output) / f"{file_name(path)}{'-experiences' if with_experiences else ''}.jsonl")
    rows = model.sample(problems, sampling, log, given=prompts)
    print(f"{path}: samples in {log.path}")
    return rows


def _opened(path: Path, prompt_format: str) -> ModelFolder:
    if not (path / "bitdelta_config.json").is_file():
        return ModelFolder(path, prompt_format)
    # Its import teaches transformers to load a delta's folder.
    from trl_grpo_ext.bitdelta import BitDeltaError

    try:
        return ModelFolder(path, prompt_format)
    except BitDeltaError as error:
        raise ValueError(str(error)) from error


def file_name(path: Path) -> str:
    """Return a name for a model's samples: that of its folder, and a part that tells folders of one name apart."""
    whole = path.resolve()
    return f"{whole.name}-{hashlib.sha256(str(whole).encode()).hexdigest()[:8]}"


def sampling_of(given: argparse.Namespace) -> Sampling:
    """Return how to draw, by the arguments: greedy for one sample, at temperature 1 for several."""
    temperature = given.temperature
    if temperature is None:
        temperature = 0.0 if given.samples == 1 else 1.0
    sizes = {"max_new_tokens": given.max_new_tokens, "batch_size": given.batch_size, "seed": given.seed}
    return Sampling(given.samples, temperature, given.top_p, given.top_k, **sizes)


def problems_of(given: argparse.Namespace) -> list[Row]:
    """Return the problems with the columns `prompt` and, where there is one, `solution`.

    Raises:
        ValueError: no problem, one twice, or a row without prompt.
    """
    prompts = read_prompts(given.data, given.prompt_column)
    rows = _rows(given.data)
    found: list[Row] = []
    for prompt, row in zip(prompts, rows, strict=True):
        others = {name: value for name, value in row.items() if name != given.prompt_column}
        if given.solution_column in others:
            others["solution"] = others.pop(given.solution_column)
        found.append({"prompt": prompt, **others})
    found = found[: given.limit]
    if not found:
        raise ValueError(f"{given.data} holds no problem.")
    taken = sorted({name for row in found for name in row} & OWN_COLUMNS - {"prompt"})
    if taken:
        raise ValueError(f"{given.data}: the column {taken[0]!r} is one that the file of samples adds; rename it.")
    seen: dict[str, int] = {}
    for number, row in enumerate(found):
        before = seen.setdefault(problem_key(row), number)
        if before != number:
            raise ValueError(f"{given.data}: rows {before} and {number} are the same problem; leave one out.")
    return found


def _rows(path: str) -> list[Row]:
    text = Path(path).read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def with_lessons(model: ModelFolder, problems: list[Row], given: argparse.Namespace) -> list[Any]:
    """Return the prompts with experiences, as an evaluation during training would have them.

    Raises:
        ExperienceError: the library can't be opened.
        ValueError: it has nothing to put in.
    """
    selector, count = Selector(inject=given.inject, position=given.position), TokenCounter(model.tokenizer)
    with ExperienceLibrary(given.experiences, create=False) as library:
        if selector.is_empty(library):
            raise ValueError(f"{given.experiences} holds no {given.inject}: there is nothing to put into the prompts.")
        return [_injected(row["prompt"], selector, library, count, model.is_chat) for row in problems]


def _injected(prompt: Any, selector: Selector, library: ExperienceLibrary, count: TokenCounter, is_chat: bool) -> Any:
    messages = [{"role": "user", "content": prompt}] if is_chat and isinstance(prompt, str) else prompt
    chosen = selector.choose(library, messages, 0, False, count, None)
    return inject(messages, chosen.text, selector.position, selector.template)

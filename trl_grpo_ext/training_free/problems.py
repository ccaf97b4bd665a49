"""Problems out of dataset rows, and which of them a step, or the gate, is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from trl_grpo_ext.experience import prompt_text
from trl_grpo_ext.training_free.cache import content_key
from trl_grpo_ext.training_free.calls import derived_seed
from trl_grpo_ext.training_free.operations import Source

PROMPT_COLUMNS = ("prompt", "question", "query", "problem")


@dataclass(frozen=True)
class Problem:
    """One row of the data.

    Args:
        id: hash of its columns; a row that stands twice has two ids.
        prompt: a string or a list of messages.
        text: the plain text of the prompt.
        answer: the answer as text, where the row has one.
        columns: the other columns, for the reward.
    """

    id: str
    prompt: Any
    text: str
    answer: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def source(self) -> Source:
        """What lessons may not give away."""
        return Source(self.text, self.answer)


def _prompt(row: Any, number: int, argument: str) -> tuple[str, Any]:
    if not isinstance(row, Mapping):
        raise ValueError(f"{argument}: row {number} must be a mapping of columns, not {type(row).__name__}.")
    column = next((name for name in PROMPT_COLUMNS if row.get(name)), None)
    if column is None:
        raise ValueError(
            f"{argument}: row {number} has none of the columns {', '.join(PROMPT_COLUMNS)}; it has {', '.join(row)}."
        )
    return column, row[column]


def read_problems(
    dataset: Iterable[Mapping[str, Any]], answer_columns: Sequence[str], argument: str = "dataset"
) -> list[Problem]:
    """Return the problems of a dataset.

    Args:
        dataset: rows with a column prompt, question, query or problem: a string, or messages.
        answer_columns: where the answer stands; the first that a row has counts.
        argument: name of the dataset, for messages.

    Raises:
        ValueError: no rows, a row without a prompt, or a prompt that is neither string nor messages of text.
    """
    seen: Counter[str] = Counter()
    problems = []
    for number, row in enumerate(dataset):
        column, prompt = _prompt(row, number, argument)
        _check_prompt(prompt, number, argument)
        answer = next((str(row[name]) for name in answer_columns if row.get(name) is not None), None)
        others = {other: value for other, value in row.items() if other != column}
        key = content_key(prompt, others)[:16]
        seen[key] += 1
        name = key if seen[key] == 1 else f"{key}-{seen[key]}"
        problems.append(Problem(name, prompt, prompt_text(prompt), answer, others))
    if not problems:
        raise ValueError(f"{argument} has no rows.")
    return problems


def _check_prompt(prompt: Any, number: int, argument: str) -> None:
    messages = isinstance(prompt, list) and all(
        isinstance(item, dict) and isinstance(item.get("content"), str) and isinstance(item.get("role"), str)
        for item in prompt
    )
    if not isinstance(prompt, str) and not messages:
        raise ValueError(
            f"{argument}: the prompt of row {number} must be a string, or messages with a role and a text as content, "
            f"not {str(prompt)[:200]!r}."
        )


def split(problems: Sequence[Problem], share: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Return the problems to learn from and those that are held out: `share` of them, at least one of each.

    Equal prompts stay on one side.

    Raises:
        ValueError: fewer than two different problems.
    """
    texts = sorted({problem.text for problem in problems}, key=lambda text: derived_seed(seed, "held out", text))
    if len(texts) < 2:
        raise ValueError(
            "the gate needs held-out problems, and there is one problem only: give held_out, more problems, or gate=None "
            "to accept every candidate without evidence."
        )
    count = min(len(texts) - 1, max(1, round(share * len(texts))))
    held = set(texts[:count])
    return [item for item in problems if item.text not in held], [item for item in problems if item.text in held]


def batches(problems: Sequence[Problem], size: int, epochs: int, seed: int, shuffle: bool) -> list[list[Problem]]:
    """Return the problems of each step. The last batch of an epoch may be smaller; no batch spans two epochs."""
    found = []
    for epoch in range(epochs):
        order = list(problems)
        if shuffle:
            Random(derived_seed(seed, "order", epoch)).shuffle(order)
        found += [order[start : start + size] for start in range(0, len(order), size)]
    return found

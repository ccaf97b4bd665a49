"""The rows of a generation with experiences in them, and the same rows as rewards see them. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trl_grpo_ext.experience.injection import Prompt, inject
from trl_grpo_ext.experience.selection import Selection, Selector

Row = dict[str, Any]

# Columns of a row whose prompt is not the data set's: that one, and, where this package's callback put experiences
# into it, what they are. Every row of a generation has them, or none has.
PLAIN_PROMPT = "plain_prompt"
SELECTION = "experience_selection"

_IMAGES = ("image", "images")


@dataclass(frozen=True)
class Placed:
    """What a row was given, and the very prompt that it was put into."""

    selection: Selection
    prompt: Prompt


def check_columns(names: Iterable[str], needed: Sequence[str] = ()) -> None:
    """Refuse a data set whose rows can't be injected into.

    Args:
        names: its columns; none where they are not known before the first row.
        needed: columns that must be there.

    Raises:
        ValueError: images, a column with one of our names, or a needed one that is missing.
    """
    names = set(names)
    if not names:
        return
    for name in _IMAGES:
        if name in names:
            raise ValueError(f"experiences go into prompts of text only, and this data set has a column {name!r}.")
    for name in (PLAIN_PROMPT, SELECTION):
        if name in names:
            raise ValueError(f"ExperienceCallback adds the column {name!r}, which this data set has; rename yours.")
    for name in needed:
        if name not in names:
            raise ValueError(
                f"metadata_columns: the data set has no column {name!r}; it has {', '.join(sorted(names))}."
            )


def injected_row(row: Row, selection: Selection, selector: Selector) -> Row:
    """Return a row with experiences in its prompt; it shares nothing of the prompt with the old one.

    TRL 0.24 takes the last message of a prompt that ends with an assistant's turn away from the row it was given.
    """
    prompt = inject(row["prompt"], selection.text, selector.position, selector.template)
    return {**row, "prompt": prompt, PLAIN_PROMPT: row["prompt"], SELECTION: Placed(selection, prompt)}


def selection_of(row: Row) -> Selection | None:
    """Return what this package's callback put into a row; None for a row that somebody else has put something into."""
    if PLAIN_PROMPT not in row:
        return Selection()
    placed = row.get(SELECTION)
    # Somebody may have taken such a row and given it another prompt.
    return placed.selection if placed is not None and placed.prompt is row["prompt"] else None


def plain_prompt(row: Row, given: Prompt) -> Prompt:
    """Return the plain prompt of a row in the form in which the trainer hands out the injected one.

    Args:
        row: the row.
        given: its injected prompt, after generation: TRL 0.24 moves the beginning of an answer at its end into the
            completion.
    """
    plain: Prompt = row[PLAIN_PROMPT]
    if isinstance(plain, list) and plain[-1]["role"] == "assistant" and given[-1:] and _role(given[-1]) != "assistant":
        return plain[:-1]
    return plain


def _role(message: Any) -> Any:
    return message["role"] if isinstance(message, dict) else None


def plain_row(row: Row, prompt: Prompt) -> Row:
    """Return a row without our columns and with its plain prompt, as it came from the data set."""
    kept = {name: value for name, value in row.items() if name not in (PLAIN_PROMPT, SELECTION)}
    return kept | {"prompt": prompt}

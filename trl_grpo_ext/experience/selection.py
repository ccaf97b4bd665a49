"""Which text goes into which prompt: a pure function of (prompt, library version, seed, step). Standard library only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trl_grpo_ext.experience.filters import check_filter
from trl_grpo_ext.experience.injection import (
    SEPARATOR,
    Prompt,
    check_position,
    check_prompt,
    check_template,
    filled,
    inject,
    prompt_text,
)
from trl_grpo_ext.experience.library import ExperienceLibrary
from trl_grpo_ext.experience.prompting import few_shot_text, lessons_text
from trl_grpo_ext.experience.retrieval import Similarity

KINDS = ("lessons", "episodes", "both", "none")


class TokenCounter:
    """Counts tokens as the run's tokenizer does, each text once.

    Args:
        processing_class: a tokenizer, or a processor that has one.
    """

    def __init__(self, processing_class: Any) -> None:
        self._tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self._known: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        """Return the tokens of a text, without special tokens."""
        if text not in self._known:
            if len(self._known) > 100_000:
                self._known.clear()
            self._known[text] = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._known[text]

    def prompt(self, prompt: Prompt) -> int:
        """Return the tokens of a whole prompt; of messages, by the tokenizer's chat template."""
        if isinstance(prompt, str):
            return self(prompt)
        answered = prompt[-1]["role"] == "assistant"
        ends = {"continue_final_message": answered, "add_generation_prompt": not answered}
        return self(self._tokenizer.apply_chat_template(prompt, tokenize=False, **ends))


@dataclass(frozen=True)
class Selection:
    """What one prompt gets.

    Args:
        text: the experiences, without the template; empty for none.
        ids: of the records in it.
        tokens: of the text in its template.
        withheld: whether dropout kept experiences back that the prompt would have got.
    """

    text: str = ""
    ids: tuple[str, ...] = ()
    tokens: int = 0
    withheld: bool = False


def drops_group(seed: int, step: int, prompt: str, dropout: float) -> bool:
    """Return whether dropout leaves the group of a prompt without experiences: u < dropout.

    u in [0, 1) is a hash of (seed, step, prompt): the same on every rank and after a resume, and no draw from a
    generator that anything else uses.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{prompt}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") < dropout * 2**64


@dataclass(frozen=True)
class Selector:
    """How records are chosen and written; see `ExperienceCallback` for the arguments.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument outside its range.
    """

    inject: str = "lessons"
    position: str = "system"
    template: str | None = None
    token_budget: int | None = None
    episodes: int = 2
    dropout: float = 0.0
    same_prompt: bool = False
    where: Mapping[str, Any] | None = None
    seed: int = 0
    similarity: Similarity | None = None

    def __post_init__(self) -> None:
        if self.inject not in KINDS:
            raise ValueError(f"inject must be one of {', '.join(KINDS)}, not {self.inject!r}.")
        check_position(self.position)
        check_template(self.template)
        check_filter(self.where)
        _check_integer("token_budget", self.token_budget, 0, optional=True)
        _check_integer("episodes", self.episodes, 1)
        _check_integer("seed", self.seed, 0)
        share = self.dropout
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
            raise ValueError(f"dropout is the share of groups without experiences, in [0, 1], not {share!r}.")
        if not isinstance(self.same_prompt, bool):
            raise TypeError(f"same_prompt must be True or False, not {self.same_prompt!r}.")

    def is_empty(self, library: ExperienceLibrary) -> bool:
        """Return whether the library holds nothing of the kind that is injected."""
        counters = library.counters()
        held = {"lessons": counters.lessons, "episodes": counters.episodes, "none": 0}
        return not held.get(self.inject, sum(held.values()))

    def choose(
        self,
        library: ExperienceLibrary,
        prompt: Prompt,
        step: int,
        training: bool,
        count: TokenCounter,
        limit: int | None,
    ) -> Selection:
        """Return what a prompt gets.

        Args:
            library: the library, at one version.
            prompt: the prompt, without anything injected.
            step: optimizer steps done; decides about dropout, in training only.
            training: False never gives an episode of the same or a near-same prompt.
            count: of the run's tokenizer.
            limit: most tokens of the whole prompt, where more would be cut off; None for no limit.

        Raises:
            TypeError: a prompt that is neither a string nor messages of text.
        """
        check_prompt(prompt)
        text, ids = self._fitting(library, prompt, training, count, limit)
        if not text:
            return Selection()
        if training and drops_group(self.seed, step, prompt_text(prompt), self.dropout):
            return Selection(withheld=True)
        return Selection(text, ids, count(filled(text, self.template)))

    def _fitting(
        self, library: ExperienceLibrary, prompt: Prompt, training: bool, count: TokenCounter, limit: int | None
    ) -> tuple[str, tuple[str, ...]]:
        """The best records whose text, with headings and template, fits the budget and whose prompt fits the limit."""
        room = min((bound for bound in (self.token_budget, limit) if bound is not None), default=None)
        while room is None or room >= 0:
            text, ids = self._records(library, prompt_text(prompt), training, count, room)
            excess = self._excess(prompt, text, count, limit)
            if not text or excess <= 0:
                return text, ids
            # Never None here: without a bound there is no excess.
            room = (room or 0) - excess
        return "", ()

    def _excess(self, prompt: Prompt, text: str, count: TokenCounter, limit: int | None) -> int:
        """By how many tokens the text is over the budget, or the prompt over its limit."""
        over = 0
        if text and self.token_budget is not None:
            over = count(filled(text, self.template)) - self.token_budget
        if text and limit is not None:
            over = max(over, count.prompt(inject(prompt, text, self.position, self.template)) - limit)
        return over

    def _records(
        self, library: ExperienceLibrary, query: str, training: bool, count: TokenCounter, room: int | None
    ) -> tuple[str, tuple[str, ...]]:
        """Lessons first, in their stable order, which a prefix cache needs; episodes of what they leave of the room."""
        parts, ids = [], []
        common: dict[str, Any] = {"where": self.where, "count_tokens": count, "similarity": self.similarity}
        if self.inject in ("lessons", "both"):
            lessons = library.retrieve_lessons(query, token_budget=room, **common)
            parts.append(lessons_text([item.record for item in lessons]))  # type: ignore[misc]
            ids += [item.id for item in lessons]
            room = None if room is None else max(0, room - count(parts[0]))
        if self.inject in ("episodes", "both"):
            leak: dict[str, Any] = {"training": training, "same_prompt": self.same_prompt and training}
            found = library.retrieve_episodes(query, self.episodes, token_budget=room, **leak, **common)
            parts.append(few_shot_text([item.record for item in found]))  # type: ignore[misc]
            ids += [item.id for item in found]
        return SEPARATOR.join(part for part in parts if part), tuple(ids)


def _check_integer(name: str, value: Any, least: int, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer{' or None' if optional else ''}, not {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}.")

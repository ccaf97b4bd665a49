"""Which records go into a prompt: metadata filter, then BM25, then learned usefulness.

A pure function of the query and the library's version: nothing is drawn at random, ties are broken by age.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from trl_grpo_ext.experience.filters import condition
from trl_grpo_ext.experience.records import Episode, Record
from trl_grpo_ext.experience.rows import RECORD_COLUMNS, RECORD_TABLES, Stored, as_record
from trl_grpo_ext.experience.store import ExperienceStore
from trl_grpo_ext.experience.text_index import NEWEST, InvertedIndex, QueryTerms, terms

# Episodes that BM25 hands on, and how many of them may be of one prompt.
CANDIDATES, PER_PROMPT = 50, 4
# Weight of one unit of reward against the best BM25 score, which counts as 1.
USEFULNESS_WEIGHT = 1.0
# Observations that the prior of usefulness, a mean of 0, is worth.
PRIOR = 8.0
# Two prompts are near-same when their sets of words overlap, or their runs of words are contained, to this degree.
NEAR_JACCARD, RUN, NEAR_RUNS = 0.85, 13, 0.5

# From a query and texts to one similarity per text, larger for more alike: `SentenceSimilarity`, for example.
Similarity: TypeAlias = Callable[[str, Sequence[str]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A record and why it was chosen.

    Args:
        id: stable id.
        record: the episode or lesson.
        similarity: to the query, relative to the best candidate's; 0 where lessons were not ranked.
        usefulness: posterior mean of reward with the record minus baseline of the group.
    """

    id: str
    record: Record
    similarity: float
    usefulness: float

    @property
    def score(self) -> float:
        """similarity + USEFULNESS_WEIGHT * usefulness."""
        return self.similarity + USEFULNESS_WEIGHT * self.usefulness


def usefulness(uses: int, gain: float, prior: float = PRIOR) -> float:
    """Return the posterior mean of the gain: sum of gains / (uses + prior), so that few uses say little."""
    return gain / (uses + prior)


def _runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)}


def near_same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether two prompts, as terms, are the same question in other spelling, or mostly the same text."""
    first, second = set(one), set(other)
    if first == second or len(first & second) >= NEAR_JACCARD * len(first | second):
        return True
    runs = sorted((_runs(one), _runs(other)), key=len)
    return bool(runs[0]) and len(runs[0] & runs[1]) >= NEAR_RUNS * len(runs[0])


def within_budget(
    items: Iterable[Retrieved], budget: int, count_tokens: Callable[[str], int], text: Callable[[Record], str]
) -> list[Retrieved]:
    """Return the items that fit one after the other; one that does not fit leaves room for shorter ones."""
    chosen = []
    for item in items:
        cost = count_tokens(text(item.record))
        if cost <= budget:
            budget -= cost
            chosen.append(item)
    return chosen


def plain_text(record: Record) -> str:
    """Return the text whose tokens count: a lesson's, or an episode's prompt and response."""
    return f"{record.prompt}\n{record.response}" if isinstance(record, Episode) else record.text


def check_budget(token_budget: int | None, count_tokens: Callable[[str], int] | None) -> None:
    """Refuse a budget that can't be counted.

    Raises:
        ValueError: a negative budget, or one without a way to count.
    """
    if token_budget is None:
        return
    if token_budget < 0:
        raise ValueError(f"token_budget must not be negative: {token_budget!r}.")
    if count_tokens is None:
        raise ValueError("token_budget needs count_tokens, such as lambda text: len(tokenizer.encode(text)).")


def _relative(scores: Sequence[float]) -> list[float]:
    best = max(scores, default=0.0)
    return [max(0.0, score / best) if best > 0 else 0.0 for score in scores]


class LessonShelf:
    """The lessons of one version, in stable order, and their index.

    Args:
        held: the lessons, the oldest first.
    """

    def __init__(self, held: Sequence[Stored]) -> None:
        self.lessons = [Retrieved(item.id, item.record, 0.0, usefulness(item.uses, item.gain)) for item in held]
        self._index: InvertedIndex | None = None
        self._counted: tuple[Callable[[str], int], int] | None = None

    def cost(self, count_tokens: Callable[[str], int]) -> int:
        """Return the tokens of all lessons; counted once."""
        if self._counted is None or self._counted[0] is not count_tokens:
            self._counted = (count_tokens, sum(count_tokens(plain_text(item.record)) for item in self.lessons))
        return self._counted[1]

    def ranked(self, query: str, similarity: Similarity | None) -> list[Retrieved]:
        """Return every lesson, the best for the query first."""
        texts = [plain_text(item.record) for item in self.lessons]
        if similarity is None:
            self._index = self._index or InvertedIndex(enumerate(texts))
            found = dict(self._index.ranked(list(dict.fromkeys(terms(query)))))
            scores = [found.get(place, 0.0) for place in range(len(texts))]
        else:
            scores = list(similarity(query, texts))
        rated = [
            Retrieved(item.id, item.record, score, item.usefulness)
            for item, score in zip(self.lessons, _relative(scores), strict=True)
        ]
        return sorted(rated, key=lambda item: -item.score)

    def choose(
        self, query: str, budget: int, count_tokens: Callable[[str], int], similarity: Similarity | None
    ) -> list[Retrieved]:
        """Return all lessons if they fit the budget, else the best that do; always in stable order.

        The order, the same for every query, is what a prefix cache needs.
        """
        if self.cost(count_tokens) <= budget:
            return self.lessons
        ranked = self.ranked(query, similarity)
        chosen = {item.id for item in within_budget(ranked, budget, count_tokens, plain_text)}
        return [item for item in self.lessons if item.id in chosen]


def _matching_prompts(store: ExperienceStore, query: str, chooser: QueryTerms) -> Iterator[tuple[int, float]]:
    """Prompts that share words with the query, the best first."""
    words = chooser.choose(query, store.index, store.version)
    if words:
        yield from store.index.ranked(words)
        return
    wanted = set(terms(query))
    rated = []
    for prompt in store.index.newest(sorted(wanted), NEWEST) if wanted else []:
        there = set(terms(store.value("SELECT text FROM prompts WHERE prompt = ?", (prompt,))))
        rated.append((prompt, len(wanted & there) / len(wanted | there)))
    yield from sorted(rated, key=lambda item: (-item[1], -item[0]))


def _episodes(store: ExperienceStore, prompt: int, where: Mapping[str, Any] | None) -> list[Stored]:
    matching, values = condition(where)
    rows = store.rows(
        f"SELECT {RECORD_COLUMNS} FROM {RECORD_TABLES} WHERE live AND records.prompt = ?{matching} "
        "ORDER BY advantage DESC, record LIMIT ?",
        (prompt, *values, PER_PROMPT),
    )
    return [as_record(row) for row in rows]


def episode_candidates(
    store: ExperienceStore, query: str, chooser: QueryTerms, where: Mapping[str, Any] | None, same_prompt: bool
) -> Iterator[tuple[Stored, float]]:
    """Return episodes of prompts that share words with the query, with their BM25, the best first.

    Args:
        store: the library's store.
        query: the prompt at hand.
        chooser: remembers how common words are.
        where: metadata filter.
        same_prompt: whether episodes of the same or a near-same prompt are allowed. They give the answer away.
    """
    words = terms(query)
    for prompt, score in _matching_prompts(store, query, chooser):
        held = _episodes(store, prompt, where)
        if held and (same_prompt or not _same(held[0].record, query, words)):
            yield from ((item, score) for item in held)


def _same(record: Record, query: str, words: Sequence[str]) -> bool:
    prompt = record.prompt if isinstance(record, Episode) else ""
    return prompt == query or near_same(words, terms(prompt))


def rank_episodes(
    candidates: Iterable[tuple[Stored, float]], query: str, similarity: Similarity | None
) -> list[Retrieved]:
    """Return the first CANDIDATES, the best by similarity and usefulness first."""
    found = list(islice(candidates, CANDIDATES))
    scores = [score for _, score in found]
    if similarity is not None and found:
        scores = list(similarity(query, [item.record.prompt for item, _ in found]))  # type: ignore[union-attr]
    rated = [
        Retrieved(item.id, item.record, relative, usefulness(item.uses, item.gain))
        for (item, _), relative in zip(found, _relative(scores), strict=True)
    ]
    return sorted(rated, key=lambda item: -item.score)

"""Figures, draws and retrieval. Use `ExperienceLibrary`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

from trl_grpo_ext.experience import reading, reports, retrieval, writing
from trl_grpo_ext.experience.filters import check_filter, condition
from trl_grpo_ext.experience.groups import RolloutGroup
from trl_grpo_ext.experience.library_file import LibraryFile
from trl_grpo_ext.experience.records import Episode, Record
from trl_grpo_ext.experience.retrieval import LessonShelf, Retrieved, Similarity
from trl_grpo_ext.experience.rows import Counters, Stored
from trl_grpo_ext.experience.sampling import LibrarySampler
from trl_grpo_ext.experience.stats import ExperienceStats
from trl_grpo_ext.experience.text_index import QueryTerms


class LibraryReading(LibraryFile):
    """What changes nothing in a library."""

    _random: Random

    def _forget_caches(self) -> None:
        self._sampler = LibrarySampler(self._store, self.config.temperature)
        self._chooser = QueryTerms()
        self._shelves: dict[str, tuple[int, LessonShelf]] = {}

    def library_size(self) -> int:
        """Return the number of episodes."""
        return self._store.counters().episodes

    def lesson_count(self) -> int:
        """Return the number of lessons."""
        return self._store.counters().lessons

    def __len__(self) -> int:
        counters = self._store.counters()
        return counters.episodes + counters.lessons

    def __bool__(self) -> bool:
        return True

    def is_at_capacity(self) -> bool:
        """Return whether the library holds `max_library_size` episodes."""
        return self.library_size() >= self.config.max_library_size

    def get(self, name: str) -> Stored:
        """Return a record by id.

        Raises:
            KeyError: no such record.
        """
        return self._store.read([writing.live_number(self._store, name)])[0]

    def records(self, kind: str | None = None, where: Mapping[str, Any] | None = None) -> Iterator[Stored]:
        """Return the records, the oldest first, in pieces: changes meanwhile do no harm.

        Args:
            kind: "episode", "lesson" or both.
            where: metadata filter: a value, or a list of values, per key.
        """
        return reading.scan(self._store, kind, *condition(where))

    def __iter__(self) -> Iterator[Record]:
        return (item.record for item in self.records())

    def stats(self) -> ExperienceStats:
        """Return the guide's seven figures."""
        return reports.stats(self._store)

    def counters(self) -> Counters:
        """Return the counts of the current version; unlike `stats`, at the same cost for any size."""
        return self._store.counters()

    def holds_group(self, group: RolloutGroup) -> bool:
        """Return whether a group was stored before: adding it again would do nothing."""
        return self._store.value("SELECT 1 FROM groups WHERE key = ?", (group.key,)) is not None

    def coverage(self, minimum: int = 5, limit: int | None = None) -> list[reports.Coverage]:
        """Return the prompts that need rollouts most: fewer than `minimum` episodes, then the widest reward spread."""
        return reports.coverage(self._store, minimum, limit)

    # Drawing.

    def sample_experience(
        self, *, where: Mapping[str, Any] | None = None, temperature: float | None = None
    ) -> Episode | None:
        """Draw one episode by its advantage; None from an empty library."""
        return next(iter(self.sample_multiple(1, where=where, temperature=temperature)), None)

    def sample_multiple(
        self, count: int, *, where: Mapping[str, Any] | None = None, temperature: float | None = None
    ) -> list[Episode]:
        """Draw different episodes by their advantage: P(i) = exp(A_i / T) / sum_j exp(A_j / T).

        Args:
            count: how many; fewer come back when there are fewer.
            where: metadata filter.
            temperature: T, the configuration's by default. 0: the best; infinity: uniform.

        Raises:
            ValueError: a negative count or temperature.
        """
        numbers = self._sampler.draw(count, self._random, where, temperature)
        return [item.record for item in self._store.read(numbers)]  # type: ignore[misc]

    # Retrieval.

    def get_experiences_for_prompt(self, prompt: str, similar: int = 0) -> list[Episode]:
        """Return the episodes of exactly this prompt, the largest advantage first, then up to `similar` of others."""
        exact = reading.of_prompt(self._store, prompt)
        found = (
            self.retrieve_episodes(prompt, len(exact) + similar, training=True, same_prompt=True) if similar else []
        )
        others = [item.record for item in found if isinstance(item.record, Episode) and item.record.prompt != prompt]
        return [*exact, *others[:similar]]  # type: ignore[list-item]

    def retrieve_episodes(
        self,
        prompt: str,
        count: int = 4,
        *,
        where: Mapping[str, Any] | None = None,
        training: bool = False,
        same_prompt: bool = False,
        token_budget: int | None = None,
        count_tokens: Callable[[str], int] | None = None,
        similarity: Similarity | None = None,
    ) -> list[Retrieved]:
        """Return episodes that may help with a prompt: metadata filter, BM25, then learned usefulness.

        Args:
            prompt: the prompt, without anything injected.
            count: how many.
            where: metadata filter.
            training: whether this is for a training rollout.
            same_prompt: also episodes of the same and near-same prompts, which give the answer away: training only.
            token_budget: most tokens of prompts and responses together.
            count_tokens: tokens of a text, by the run's tokenizer; needed with a budget.
            similarity: in place of BM25's score, for the candidates that BM25 found.

        Raises:
            ValueError: `same_prompt` outside training, or a budget without `count_tokens`.
        """
        if same_prompt and not training:
            raise ValueError("same_prompt=True needs training=True: in evaluation it would give the answer away.")
        retrieval.check_budget(token_budget, count_tokens)
        if not self.library_size():
            return []
        candidates = retrieval.episode_candidates(self._store, prompt, self._chooser, where, same_prompt)
        ranked = retrieval.rank_episodes(candidates, prompt, similarity)
        if token_budget is not None and count_tokens is not None:
            ranked = retrieval.within_budget(ranked, token_budget, count_tokens, retrieval.plain_text)
        return ranked[:count]

    def retrieve_lessons(
        self,
        prompt: str = "",
        *,
        where: Mapping[str, Any] | None = None,
        token_budget: int | None = None,
        count_tokens: Callable[[str], int] | None = None,
        similarity: Similarity | None = None,
    ) -> list[Retrieved]:
        """Return all lessons in stable order; where they exceed the budget, the best for the prompt, in that order.

        Args:
            prompt: the prompt, without anything injected; only matters where not all fit.
            where: metadata filter.
            token_budget: most tokens of the lessons together; no limit by default.
            count_tokens: tokens of a text, by the run's tokenizer; needed with a budget.
            similarity: in place of BM25's score.

        Raises:
            ValueError: a budget without `count_tokens`.
        """
        retrieval.check_budget(token_budget, count_tokens)
        shelf = self._shelf(where)
        if token_budget is None or count_tokens is None:
            return list(shelf.lessons)
        return list(shelf.choose(prompt, token_budget, count_tokens, similarity))

    def search_lessons(self, query: str, count: int = 4, *, where: Mapping[str, Any] | None = None) -> list[Retrieved]:
        """Return the lessons that share words with a query, the best first."""
        return [item for item in self._shelf(where).ranked(query, None) if item.similarity > 0][:count]

    def _shelf(self, where: Mapping[str, Any] | None) -> LessonShelf:
        key, version = json.dumps(check_filter(where), sort_keys=True), self.version
        if key not in self._shelves or self._shelves[key][0] != version:
            self._shelves[key] = (version, LessonShelf(list(self.records("lesson", where))))
        return self._shelves[key][1]

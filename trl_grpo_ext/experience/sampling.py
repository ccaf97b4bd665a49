"""The sampler of a library: built when it is first needed, then kept at the library's version by the log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

from trl_grpo_ext.experience.filters import condition
from trl_grpo_ext.experience.sampler import AdvantageSampler, check_temperature, gumbel_top_k
from trl_grpo_ext.experience.store import ExperienceStore

# Beyond this many operations, reading every advantage again is faster than following the log.
_MOST_OPERATIONS = 20_000


class LibrarySampler:
    """Draws row numbers of live episodes.

    Args:
        store: the library's store.
        temperature: the configuration's; other temperatures and filters go through Gumbel top-k.
    """

    def __init__(self, store: ExperienceStore, temperature: float) -> None:
        self._store = store
        self._temperature = temperature
        self._sampler: AdvantageSampler | None = None
        self._version = -1

    def _current(self) -> AdvantageSampler:
        version = self._store.version
        if self._sampler is None:
            self._sampler = self._build()
        elif version != self._version:
            self._follow(version)
        self._version = version
        return self._sampler

    def _build(self) -> AdvantageSampler:
        return AdvantageSampler(self._advantages(None), self._temperature)

    def _advantages(self, where: Mapping[str, Any] | None) -> Iterable[tuple[int, float]]:
        matching, values = condition(where, scan=True)
        # Without a filter the index alone is read, and not the whole file.
        index = "" if matching else "INDEXED BY records_by_advantage"
        rows = self._store.rows(
            f"SELECT record, advantage FROM records {index} WHERE live AND kind = 'episode'{matching}", values
        )
        return sorted(rows)  # type: ignore[arg-type]

    def _follow(self, version: int) -> None:
        if self._version < self._store.horizon:
            self._sampler = self._build()
            return
        rows = self._store.rows(
            "SELECT operations.kind, record, advantage, after FROM operations JOIN records USING (record) "
            "WHERE version > ? AND version <= ? AND records.kind = 'episode' ORDER BY number LIMIT ?",
            (self._version, version, _MOST_OPERATIONS + 1),
        )
        if len(rows) > _MOST_OPERATIONS or version < self._version:
            self._sampler = self._build()
            return
        for kind, record, advantage, after in rows:
            self._apply(kind, record, advantage, after)

    def _apply(self, kind: str, record: int, advantage: float, after: str | None) -> None:
        sampler = self._sampler
        assert sampler is not None
        if kind == "retire":
            if record in sampler:
                sampler.remove(record)
        elif kind != "change" or "advantage" in json.loads(after or "{}"):
            sampler.set(record, advantage)

    def draw(
        self, count: int, random: Random, where: Mapping[str, Any] | None = None, temperature: float | None = None
    ) -> list[int]:
        """Draw up to `count` different episodes.

        Raises:
            ValueError: a negative count or temperature, or a bad filter.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"the number of episodes to draw must be a whole number of at least 0, not {count!r}.")
        asked = self._temperature if temperature is None else check_temperature(temperature)
        if where:
            return [number for number, _ in gumbel_top_k(self._advantages(where), count, asked, random)]
        sampler = self._current()
        if asked != self._temperature:
            return [number for number, _ in gumbel_top_k(sampler.items(), count, asked, random)]
        if count == 1 and len(sampler):
            return [sampler.draw(random)]
        return sampler.draw_distinct(count, random)

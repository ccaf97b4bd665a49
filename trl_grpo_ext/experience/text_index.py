"""BM25 over prompts: SQLite's FTS5, and the same scores from plain Python where SQLite was built without it."""

from __future__ import annotations

import math
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

# The parameters and the formula of FTS5's bm25().
K1, B, LEAST_IDF = 1.2, 0.75, 1e-6
# What a query may cost at a million prompts: terms in more prompts than MOST_PROMPTS say little and are left out, and
# the rarest MOST_TERMS others are taken until their lists hold MOST_ENTRIES.
MOST_PROMPTS, MOST_TERMS, MOST_ENTRIES = 5_000, 64, 10_000
# When every term is that common: so many of the newest prompts are compared by their words.
NEWEST = 300
# Of a longer text only the beginning is indexed.
MOST_CHARACTERS = 20_000

_WORD = re.compile(r"[^\W_]+")
# Scripts without spaces between words: each pair of neighbours is a term.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def _split(word: str) -> list[str]:
    found: list[str] = []
    rest = 0
    for run in _UNSPACED.finditer(word):
        found += [word[rest : run.start()]]
        text, rest = run.group(), run.end()
        found += [text[i : i + 2] for i in range(len(text) - 1)] or [text]
    return [term for term in [*found, word[rest:]] if term]


def terms(text: str) -> list[str]:
    """Return the terms of a text, in order: NFKC, without case; Chinese, Japanese, Korean and Thai as pairs."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text[:MOST_CHARACTERS]).casefold())
    return [term for word in words for term in (_split(word) if not word.isascii() else [word])]


class TextIndex(Protocol):
    """What retrieval asks of an index of prompts."""

    def add(self, prompt: int, text: str) -> None:
        """Index a prompt."""

    def frequency(self, term: str, limit: int) -> int:
        """Return in how many prompts the term is; `limit` for at least so many."""

    def ranked(self, query: Sequence[str]) -> Iterable[tuple[int, float]]:
        """Return (prompt, BM25) of every prompt with a term of the query, the best first."""

    def newest(self, query: Sequence[str], limit: int) -> list[int]:
        """Return the newest prompts with a term of the query."""


class FullTextIndex:
    """FTS5 without its own tokenizer: it is given `terms()`, quoted, so that no text is ever read as MATCH syntax."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @staticmethod
    def create(connection: sqlite3.Connection) -> None:
        """Make the virtual table; fails where SQLite has no FTS5."""
        connection.execute(
            "CREATE VIRTUAL TABLE IF NOT EXISTS prompt_terms USING fts5 (terms, content = '', tokenize = 'ascii')"
        )

    def add(self, prompt: int, text: str) -> None:
        """Index a prompt."""
        row = (prompt, " ".join(terms(text)))
        self._connection.execute("INSERT INTO prompt_terms (rowid, terms) VALUES (?, ?)", row)

    def remove(self, prompt: int, text: str) -> None:
        """Take out a prompt that was indexed with this text: without content of its own FTS5 must be given it again."""
        row = (prompt, " ".join(terms(text)))
        self._connection.execute("INSERT INTO prompt_terms (prompt_terms, rowid, terms) VALUES ('delete', ?, ?)", row)

    @staticmethod
    def _match(query: Sequence[str]) -> str:
        return " OR ".join(f'"{term}"' for term in query)

    def frequency(self, term: str, limit: int) -> int:
        """Return in how many prompts the term is; `limit` for at least so many."""
        statement = "SELECT count(*) FROM (SELECT 1 FROM prompt_terms WHERE prompt_terms MATCH ? LIMIT ?)"
        return int(self._connection.execute(statement, (self._match([term]), limit)).fetchone()[0])

    def ranked(self, query: Sequence[str]) -> Iterable[tuple[int, float]]:
        """Return (prompt, BM25) of every prompt with a term of the query, the best first."""
        statement = (
            "SELECT rowid, -bm25(prompt_terms) AS score FROM prompt_terms WHERE prompt_terms MATCH ? "
            "ORDER BY score DESC, rowid"
        )
        return self._connection.execute(statement, (self._match(query),))

    def newest(self, query: Sequence[str], limit: int) -> list[int]:
        """Return the newest prompts with a term of the query."""
        statement = "SELECT rowid FROM prompt_terms WHERE prompt_terms MATCH ? ORDER BY rowid DESC LIMIT ?"
        return [prompt for (prompt,) in self._connection.execute(statement, (self._match(query), limit))]


class InvertedIndex:
    """The same in memory: score(q, d) = sum_{t in q} idf(t) f(t, d) (k1 + 1) / (f(t, d) + k1 (1 - b + b |d| / avg|d|)).

    idf(t) = ln((N - n(t) + 0.5) / (n(t) + 0.5)), at least LEAST_IDF, as in FTS5.
    """

    def __init__(self, prompts: Iterable[tuple[int, str]] = ()) -> None:
        self._entries: dict[str, dict[int, int]] = {}
        self._lengths: dict[int, int] = {}
        self._all = 0
        for prompt, text in prompts:
            self.add(prompt, text)

    def add(self, prompt: int, text: str) -> None:
        """Index a prompt."""
        if prompt in self._lengths:
            return
        counts = Counter(terms(text))
        self._lengths[prompt] = counts.total()
        self._all += counts.total()
        for term, count in counts.items():
            self._entries.setdefault(term, {})[prompt] = count

    def frequency(self, term: str, limit: int) -> int:
        """Return in how many prompts the term is; `limit` for at least so many."""
        return min(limit, len(self._entries.get(term, ())))

    def ranked(self, query: Sequence[str]) -> Iterable[tuple[int, float]]:
        """Return (prompt, BM25) of every prompt with a term of the query, the best first."""
        size = len(self._lengths)
        scores: dict[int, float] = {}
        for term in query:
            entries = self._entries.get(term, {})
            idf = max(LEAST_IDF, math.log((size - len(entries) + 0.5) / (len(entries) + 0.5)))
            for prompt, count in entries.items():
                length = 1 - B + B * self._lengths[prompt] * size / self._all
                scores[prompt] = scores.get(prompt, 0.0) + idf * count * (K1 + 1) / (count + K1 * length)
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))

    def newest(self, query: Sequence[str], limit: int) -> list[int]:
        """Return the newest prompts with a term of the query."""
        found = {prompt for term in query for prompt in self._entries.get(term, ())}
        return sorted(found, reverse=True)[:limit]


def has_full_text(connection: sqlite3.Connection) -> bool:
    """Return whether this SQLite was built with FTS5."""
    try:
        connection.execute("CREATE VIRTUAL TABLE temp.fts5_probe USING fts5 (terms)")
    except sqlite3.OperationalError as error:
        if "no such module" not in str(error):
            raise
        return False
    connection.execute("DROP TABLE temp.fts5_probe")
    return True


class QueryTerms:
    """Chooses which words of a query to search for; remembers how common words are within one library version."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._version = -1

    def choose(self, query: str, index: TextIndex, version: int) -> list[str]:
        """Return the rarest terms whose lists fit the budget, the rarest first; none when all are too common."""
        if version != self._version:
            self._known, self._version = {}, version
        found = []
        for term in dict.fromkeys(terms(query)):
            count = self._known.get(term)
            if count is None:
                count = self._known[term] = index.frequency(term, MOST_PROMPTS + 1)
            if 0 < count <= MOST_PROMPTS:
                found.append((count, term))
        chosen: list[str] = []
        entries = 0
        for count, term in sorted(found)[:MOST_TERMS]:
            entries += count
            if not chosen or entries <= MOST_ENTRIES:
                chosen.append(term)
        return chosen

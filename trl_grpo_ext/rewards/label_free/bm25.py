"""BM25 retrieval over a small corpus, in memory. Standard library only."""

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+")
STOP_WORDS = frozenset(
    "a an and are as at be been being by can could did do does for from had has have he her his how i if in into is it "
    "its itself may might more most must of on or our she should so some such than that the their them then there "
    "these they this those to too very was we were what when which who will with would you your".split()
)


def stem(word: str) -> str:
    """Return the word without a plural s: "turtles" and "turtle" are one term, "grass" stays."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def terms(text: str) -> list[str]:
    """Return the words of a text without case, plural s and English stop words, in order."""
    words = _WORD.findall(text.casefold())
    return [stem(word) for word in words if word not in STOP_WORDS]


class BM25:
    """Okapi BM25: score(q, d) = sum_{t in q} idf(t) * f(t,d) * (k1 + 1) / (f(t,d) + k1 * (1 - b + b * |d| / avg|d|)).

    idf(t) = ln(1 + (N - n(t) + 0.5) / (n(t) + 0.5)) is never negative (Robertson and Zaragoza 2009, as Lucene has it).
    A term that the query repeats counts once. Memory is linear in the corpus; a query reads the entries of its terms.

    Args:
        documents: the texts; at least one.
        k1: saturation of the term frequency; 1.5 by default.
        b: length normalisation in [0, 1]; 0.75 by default.

    Raises:
        ValueError: no documents.
    """

    def __init__(self, documents: Sequence[str], k1: float = 1.5, b: float = 0.75) -> None:
        if isinstance(documents, str) or not documents:
            raise ValueError(f"BM25: documents must be a sequence of at least one text, not {documents!r}.")
        self.documents = list(documents)
        counts = [Counter(terms(document)) for document in self.documents]
        average = sum(count.total() for count in counts) / len(counts) or 1.0
        self._entries: dict[str, list[tuple[int, float]]] = {}
        for place, count in enumerate(counts):
            length = k1 * (1 - b + b * count.total() / average)
            for term, frequency in count.items():
                weight = frequency * (k1 + 1) / (frequency + length)
                self._entries.setdefault(term, []).append((place, weight))

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """Return the (place, score) of the `k` best documents that share a term with the query, the best first."""
        scores: dict[int, float] = {}
        for term in dict.fromkeys(terms(query)):
            entries = self._entries.get(term, [])
            idf = math.log(1 + (len(self.documents) - len(entries) + 0.5) / (len(entries) + 0.5))
            for place, weight in entries:
                scores[place] = scores.get(place, 0.0) + idf * weight
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]

"""Similarity by sentence embeddings, in place of BM25's score, for `retrieve_lessons` and `retrieve_episodes`.

Needs the extra `retrieval`: `pip install 'trl-grpo-ext[retrieval]'`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any


class SentenceSimilarity:
    """Cosine of sentence embeddings; embeddings of texts seen before are kept.

    Args:
        model: name or directory of a sentence-transformers model, or an object with its `encode` method.
        remember: how many embeddings are kept.

    Raises:
        ImportError: a name was given and sentence-transformers is not installed.
    """

    def __init__(self, model: Any, remember: int = 20_000) -> None:
        if isinstance(model, str):
            try:
                from sentence_transformers import SentenceTransformer
            except ImportError as error:
                needed = "SentenceSimilarity needs sentence-transformers: pip install 'trl-grpo-ext[retrieval]'"
                raise ImportError(f"{needed} ({error}).") from error
            model = SentenceTransformer(model)
        self._model = model
        self._remember = remember
        self._known: OrderedDict[str, list[float]] = OrderedDict()

    def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            vectors = self._model.encode(missing, normalize_embeddings=True)
            self._known.update(zip(missing, ([float(x) for x in vector] for vector in vectors), strict=True))
        found = [self._known[text] for text in texts]
        while len(self._known) > self._remember:
            self._known.popitem(last=False)
        return found

    def __call__(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return one cosine per text."""
        first, *others = self._embed([query, *texts])
        return [sum(a * b for a, b in zip(first, other, strict=True)) for other in others]

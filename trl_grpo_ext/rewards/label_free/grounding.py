"""Factual grounding: is any claim of a completion contradicted by the user's own facts?"""

import math
import re
from collections.abc import Sequence
from typing import Any

from trl_grpo_ext._suggest import did_you_mean
from trl_grpo_ext.rewards.label_free.bm25 import BM25
from trl_grpo_ext.rewards.label_free.lexical_judge import (
    ABSTAIN,
    CONTRADICTED,
    SUPPORTED,
    VERDICTS,
    Judge,
    lexical_verdict,
)
from trl_grpo_ext.rewards.text import completion_text

MAX_CLAIMS = 32
MAX_CHARACTERS = 20_000

_SENTENCE_END = re.compile(r"(?<=[.!?])[ \t]+|[\n\r]+|[\u3002\uff01\uff1f]")


def split_claims(text: str) -> list[str]:
    """Return the sentences of a text that hold a letter: the first 32 of its first 20,000 characters."""
    parts = (part.strip(" \t-*#>") for part in _SENTENCE_END.split(text[:MAX_CHARACTERS]))
    return [part for part in parts if any(character.isalpha() for character in part)][:MAX_CLAIMS]


class FactualGroundingReward:
    """Binary grounding: 0.0 if the facts contradict any claim; else 1.0 if they support one; else `abstain`.

    Each sentence of the completion is a claim; BM25 retrieves its `top_k` facts, and the judge gives a verdict on it.
    The verdict is binary per completion on purpose: retrieval-grounded rewards that were continuous lowered quality,
    and shares of supported claims are hacked by short or vague text, while a binary one cut hallucination without loss
    elsewhere ("Train for Truth, Keep the Skills"); abstaining is a branch of its own as in TruthRL (arXiv 2509.25760).

    Range {0, 1}, or `abstain`. Failure modes: it is as good as the corpus and the judge; the default judge compares
    words only (`lexical_verdict`). Claims off the corpus are free, so a policy can learn to speak of something else or
    to say one supported sentence: combine it with a reward for relevance or detail.

    Args:
        corpus: the facts, one short statement each.
        judge: (claim, retrieved facts) -> "supported", "contradicted" or "abstain"; `lexical_verdict` by default. It
            is not called for a claim that shares no word with the corpus.
        top_k: facts retrieved per claim; 3 by default.
        min_score: facts with a lower BM25 score are not shown to the judge; 0.0 by default.
        abstain: the reward of a completion of which nothing was judged; None (default): no reward for the row.
        name: "factual_grounding" by default.

    Attributes:
        last_metrics: `<name>/supported`, `<name>/contradicted`, `<name>/abstain`: shares of the last call's
            completions, also logged where TRL passes `log_metric`.

    Raises:
        ValueError: an empty corpus or entry, `top_k` below 1, an `abstain` that isn't finite; in a call: a verdict that
            is none of the three.
    """

    def __init__(
        self,
        corpus: Sequence[str],
        judge: Judge = lexical_verdict,
        top_k: int = 3,
        min_score: float = 0.0,
        abstain: float | None = None,
        name: str = "factual_grounding",
    ) -> None:
        if isinstance(corpus, str) or not corpus or any(not str(fact).strip() for fact in corpus):
            raise ValueError("factual_grounding: corpus must be a sequence of at least one fact, none of them empty.")
        if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
            raise ValueError(f"factual_grounding: top_k must be a whole number of at least 1, not {top_k!r}.")
        number = isinstance(abstain, int | float) and not isinstance(abstain, bool) and math.isfinite(abstain)
        if abstain is not None and not number:
            raise ValueError(f"factual_grounding: abstain must be a finite number or None, not {abstain!r}.")
        self.__name__ = name
        self.judge, self.top_k, self.min_score, self.abstain = judge, top_k, min_score, abstain
        self.last_metrics: dict[str, float] = {}
        self._index = BM25([str(fact) for fact in corpus])

    def retrieve(self, claim: str) -> list[str]:
        """Return the facts that the judge sees for a claim, the most relevant first."""
        found = self._index.search(claim, self.top_k)
        return [self._index.documents[place] for place, score in found if score >= self.min_score]

    def _judge(self, claim: str) -> str:
        facts = self.retrieve(claim)
        verdict = self.judge(claim, facts) if facts else ABSTAIN
        if verdict not in VERDICTS:
            raise ValueError(
                f"{self.__name__}: judge must return one of {', '.join(VERDICTS)}, not {verdict!r}"
                f"{did_you_mean(str(verdict), VERDICTS) or '.'}"
            )
        return verdict

    def verdict(self, text: str) -> str:
        """Return "contradicted" if any claim of the text is, else "supported" if any is, else "abstain"."""
        verdicts = set()
        for claim in split_claims(text):
            verdicts.add(self._judge(claim))
            if CONTRADICTED in verdicts:
                return CONTRADICTED
        return SUPPORTED if SUPPORTED in verdicts else ABSTAIN

    def __call__(self, completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
        """Return 1.0, 0.0 or `abstain` per completion."""
        verdicts = [self.verdict(completion_text(completion)) for completion in completions]
        rows = max(len(verdicts), 1)
        self.last_metrics = {f"{self.__name__}/{verdict}": verdicts.count(verdict) / rows for verdict in VERDICTS}
        if kwargs.get("log_metric") is not None:
            for name, share in self.last_metrics.items():
                kwargs["log_metric"](name, share)
        rewards = {SUPPORTED: 1.0, CONTRADICTED: 0.0, ABSTAIN: self.abstain}
        return [rewards[verdict] for verdict in verdicts]

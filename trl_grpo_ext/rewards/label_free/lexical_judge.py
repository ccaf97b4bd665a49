"""A judge of claims by their words alone: no model, and weak for that."""

import re
from collections.abc import Callable, Sequence

from trl_grpo_ext.rewards.label_free.bm25 import terms

SUPPORTED, CONTRADICTED, ABSTAIN = "supported", "contradicted", "abstain"
VERDICTS = (SUPPORTED, CONTRADICTED, ABSTAIN)
MIN_OVERLAP = 0.6

Judge = Callable[[str, Sequence[str]], str]

_NEGATION = re.compile(
    r"\b(?:not|never|no|none|nor|neither|without|avoid|cannot|nothing)\b|n['\u2019]t\b", re.IGNORECASE
)
_NEGATION_TERMS = frozenset(
    {"not", "never", "no", "none", "nor", "neither", "without", "avoid", "cannot", "nothing", "t"}
)
_NUMBER = re.compile(r"(?<![\w.])[0-9][0-9,]*(?:\.[0-9]+)?")


def _content(text: str) -> set[str]:
    words = re.sub(r"n['\u2019]t\b", " ", text)
    return {term for term in terms(words) if term not in _NEGATION_TERMS and not term.isdecimal()}


def _numbers(text: str) -> set[str]:
    return {number.replace(",", "") for number in _NUMBER.findall(text)}


def _compare(claim: str, fact: str) -> str:
    own, known = _content(claim), _content(fact)
    if not own or len(own & known) / len(own) < MIN_OVERLAP:
        return ABSTAIN
    if len(_NEGATION.findall(claim)) % 2 != len(_NEGATION.findall(fact)) % 2:
        return CONTRADICTED
    numbers, facts = _numbers(claim), _numbers(fact)
    if numbers <= facts:
        return SUPPORTED
    return CONTRADICTED if facts else ABSTAIN


def lexical_verdict(claim: str, facts: Sequence[str]) -> str:
    """Judge a claim by the first of the facts that holds at least 60 % of its content words.

    "contradicted" where one of the two is negated and the other is not, or the claim has a number that the fact lacks
    though it has numbers; "supported" where negation agrees and every number of the claim is in the fact; "abstain"
    where no fact is near. Negation is counted in English (not, never, no, without, avoid, n't): an even number of them
    is none.

    Weak by construction: it takes antonyms for agreement ("are safe" and "are dangerous" share no negation), swapped
    subject and object for the same claim, and paraphrases for unknown ones. Use a judge model or an NLI model for
    anything but tests, demonstrations, and corpora whose sentences the policy has learnt to repeat.

    Args:
        claim: one sentence.
        facts: retrieved facts, the most relevant first.
    """
    for fact in facts:
        verdict = _compare(claim, fact)
        if verdict != ABSTAIN:
            return verdict
    return ABSTAIN

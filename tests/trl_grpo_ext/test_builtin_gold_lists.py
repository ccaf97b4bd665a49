"""Every gold answer of GSM8K and MATH-500 is right by the registered math rewards, and its neighbour's answer is wrong."""

import importlib.util
import json
import logging
from fractions import Fraction

import pytest

from trl_grpo_ext.rewards import fast_equal, math_equal, resolve_reward_funcs

NAMES = ["math_equal", "math_equal_strict", "gsm8k_number", "numeric_match"]
needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="needs math-verify (the extra math)"
)
VERIFIED = pytest.param("math_verified", marks=needs_math_verify)


def read(repository, *parts):
    path = repository.parent.joinpath("shared", "data", *parts)
    if not path.exists():
        pytest.skip(f"../shared/data/{'/'.join(parts)} is not here")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def shifted(rows):
    return rows[1:] + rows[:1]


@pytest.mark.parametrize("name", [*NAMES, VERIFIED])
def test_gsm8k(repository, name):
    (reward,) = resolve_reward_funcs(name)
    texts = [row["answer"] for row in read(repository, "gsm8k", "train.jsonl")]
    assert len(texts) == 7473
    assert reward(completions=texts, solution=texts) == [1.0] * 7473
    golds = [text.rpartition("####")[2].strip() for text in texts]
    assert reward(completions=[f"So it is \\boxed{{{gold}}}." for gold in golds], solution=texts) == [1.0] * 7473

    # The exceptions are the 75 rows whose neighbour has the same number, and no others.
    numbers = [Fraction(gold.replace(",", "")) for gold in golds]
    same = [float(own == other) for own, other in zip(numbers, shifted(numbers), strict=True)]
    assert reward(completions=shifted(texts), solution=texts) == same
    assert sum(same) == 75


# Neighbours in MATH-500 whose answers are equal: the same number twice, and, but for `strict`, an equation that solves
# for the number that the other one states.
EQUAL_NUMBERS = [("7", "7"), ("3", "3")]
EQUAL = [("5", "x=5"), *EQUAL_NUMBERS]


@pytest.mark.parametrize(
    ("name", "equal"),
    [
        ("math_equal", EQUAL),
        ("math_equal_strict", EQUAL_NUMBERS),
        pytest.param("math_verified", EQUAL, marks=needs_math_verify),
    ],
)
def test_math500(repository, name, equal):
    (reward,) = resolve_reward_funcs(name)
    rows = read(repository, "math500", "math500.jsonl")
    golds = [row["answer"] for row in rows]
    assert len(golds) == 500
    boxed = [f"\\boxed{{{gold}}}" for gold in golds]
    assert reward(completions=boxed, solution=golds) == [1.0] * 500

    pairs = list(zip(golds, shifted(golds), strict=True))
    verdicts = reward(completions=shifted(boxed), solution=golds)
    assert [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict] == equal
    assert [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is None] == []


def test_math500_golds_in_other_spellings(repository):
    rows = read(repository, "math500", "math500.jsonl")
    golds = [row["answer"] for row in rows]
    # The worked solutions box the answer in their own spelling.
    assert math_equal([row["solution"] for row in rows], solution=golds) == [1.0] * 500
    respelled = [gold.replace("\\frac", "\\dfrac").replace(" ", "  ") + "." for gold in golds]
    assert all(fast_equal(gold, other) for gold, other in zip(golds, respelled, strict=True))


@needs_math_verify
def test_most_of_math500_needs_no_algebra(repository):
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    golds = [row["answer"] for row in read(repository, "math500", "math500.jsonl")]
    verdicts = [fast_equal(*pair) for pair in zip(golds, shifted(golds), strict=True)]
    assert verdicts.count(None) < 150

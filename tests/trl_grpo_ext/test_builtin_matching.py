"""Numeric, normalised and multiple-choice match, and where answers are found in a text."""

import pickle
import time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.rewards.extraction import (
    last_answer_line,
    last_boxed,
    last_fenced_block,
    last_hashes,
    last_tagged,
)
from trl_grpo_ext.rewards.matching import (
    MultipleChoice,
    NumericMatch,
    multiple_choice,
    normalise_answer,
    normalised_match,
    numeric_match,
)

MARKS = st.text(alphabet="ABI abor(){}[]*.:,\n\\boxedanswer#<>`/is'", max_size=120)
HOSTILE = [
    "\\boxed{" * 100_000,
    "\\boxed{" + "{" * 500_000,
    "answer" + " " * 500_000,
    "answer is " * 50_000,
    "answer:" + "*" * 500_000,
    "####" * 200_000,
    "```" * 200_000,
    "```\n" * 200_000,
    "(" * 500_000 + "A",
    "A" + ")" * 500_000 + "x",
    "A)" * 250_000,
    "<answer>" * 100_000,
]


@pytest.mark.parametrize(
    ("options", "completion", "gold", "reward"),
    [
        ({}, "so #### 1,000.0005", "1000", 1.0),
        ({}, "so 1000.002", "1000", 0.0),
        ({"relative": 0.05}, "104 km", 100, 1.0),
        ({"relative": 0.05}, "106 km", 100, 0.0),
        ({"relative": 0.05}, "105", 100, 1.0),
        ({"relative": 0.05}, "-105", -100, 1.0),
        ({"relative": 0, "absolute": 0.5}, "0.5", 0, 1.0),
        ({"relative": 0, "absolute": 0.5}, "-0.51", 0, 0.0),
        ({"relative": 0.01, "absolute": 2}, "102", 100, 1.0),
        ({"relative": 0}, "0.1", "0.10", 1.0),
        ({"relative": 0}, "1" * 40, "1" * 39 + "2", 0.0),
        ({"relative": 0.5}, "nothing", 100, 0.0),
    ],
)
def test_numeric_match(options, completion, gold, reward):
    assert NumericMatch(**options)([completion], solution=[gold], prompts=["p"]) == [reward]


@settings(deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6), st.integers(0, 1000))
def test_numeric_match_is_the_inequality(answer, gold, absolute):
    reward = NumericMatch(relative=0.25, absolute=absolute)([f"it is {answer}"], solution=[gold])
    assert reward == [float(abs(answer - gold) <= max(Decimal("0.25") * abs(gold), absolute))]


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1", True])
@pytest.mark.parametrize("argument", ["relative", "absolute"])
def test_bad_tolerances_are_refused(argument, value):
    with pytest.raises(ValueError, match=f"NumericMatch: {argument} must be a finite number of at least 0, not"):
        NumericMatch(**{argument: value})


def test_gold_without_number_is_refused():
    with pytest.raises(ValueError, match=r"no number in row 1 .*'yes'.*normalised_match"):
        numeric_match(["1", "1"], solution=["1", "yes"])


@pytest.mark.parametrize(
    ("completion", "gold", "reward"),
    [
        ("The  Eiffel Tower!", "eiffel tower", 1.0),
        ("an apple", "Apple.", 1.0),
        ("\uff21pple", "apple", 1.0),
        ("it's", "its", 1.0),
        ("-5", "5", 0.0),
        ("\u22125", "-5", 1.0),
        ("1.5", "15", 0.0),
        ("1,500", "1500", 1.0),
        ("5.", "5", 1.0),
        ("Theory", "ory", 0.0),
        ("", "The", 0.0),
        ("the", "The", 1.0),
        ("", "!", 0.0),
        ("\u5df4\u9ece\u3002", "\u5df4\u9ece", 1.0),
        ("I think the Eiffel Tower", "Eiffel Tower", 0.0),
    ],
)
def test_normalised_match(completion, gold, reward):
    assert normalised_match([completion], solution=[gold]) == [reward]


@settings(deadline=None)
@given(st.text(max_size=80))
def test_normalising_is_idempotent_and_keeps_something(text):
    once = normalise_answer(text)
    assert normalise_answer(once) == once
    assert bool(once) == bool(text.strip())


@pytest.mark.parametrize(
    ("completion", "choice"),
    [
        ("\\boxed{B}", "B"),
        ("\\boxed{\\text{(C)}}", "C"),
        ("\\boxed{a}", "A"),
        ("Answer: B", "B"),
        ("Answer: B\nThat took long.", "B"),
        ("**Answer:** (C) because", "C"),
        ("## Answer:\nD", "D"),
        ("The answer is **b**.", "B"),
        ("The answer is A.", "A"),
        ("The answer is A because it fits", "A"),
        ("Answer: A, since", "A"),
        ("answer: C\nno, answer: D", "D"),
        ("I choose B.", "B"),
        ("(B) Paris", "B"),
        ("Thinking...\nB. Paris", "B"),
        ("so it must be $\\mathbf{E}$ or so\nC", "C"),
        ("c", "C"),
        ("A", "A"),
        ("The answer is clear: (B)", "B"),
        ("Answer: A cat is a mammal", None),
        ("The answer is a prime number", None),
        ("Answer: A or B", None),
        ("\\boxed{A, B}", None),
        ("Answer: A/B/C/D", None),
        ("A cat sat", None),
        ("I think", None),
        ("Answer: Apple", None),
        ("Answer: A's", None),
        ("A, B, C, D", None),
        ("either A or B", None),
        ("Z", None),
        ("", None),
    ],
)
def test_choice(completion, choice):
    assert multiple_choice.choice(completion) == choice


def test_multiple_choice_rewards():
    completions = ["Answer: B", "Answer: C", "Paris"]
    assert multiple_choice(completions, solution=["(B) Paris", "b", "B"]) == [1.0, 0.0, 0.0]
    assert MultipleChoice(letters="AB")(["C", "B"], solution=["A", "B"]) == [0.0, 1.0]


def test_multiple_choice_refusals():
    with pytest.raises(ValueError, match=r"none of the choices ABCDEFGHIJ in row 0 .*'Paris'"):
        multiple_choice(["A"], solution=["Paris"])
    for letters in ("", "ABa", "AA", "A]"):
        with pytest.raises(ValueError, match="MultipleChoice: letters must be different letters"):
            MultipleChoice(letters=letters)


@pytest.mark.parametrize(
    ("function", "text", "found"),
    [
        (last_boxed, "\\boxed{1} \\boxed{\\frac{1}{2}} }", "\\frac{1}{2}"),
        (last_boxed, "\\fbox{3}", "3"),
        (last_boxed, "\\boxed{\\sqrt{2", "\\sqrt{2"),
        (last_boxed, "boxed{3}", None),
        (last_hashes, "#### 1\n#### 2 apples\nok", "2 apples"),
        (last_hashes, "## 3", None),
        (last_answer_line, "Answer: 1\nFinal Answer: $x$ \nbye", "$x$"),
        (last_answer_line, "**Answer**:\n\n7", "7"),
        (last_answer_line, "the answer was 7", None),
        (lambda text: last_tagged(text, "answer"), "<answer>1</answer><answer> 2 </answer>3", "2"),
        (lambda text: last_tagged(text, "answer"), "<answer>2", "2"),
        (lambda text: last_tagged(text, "answer"), "2", None),
        (last_fenced_block, "```python\na\n```\nand\n```\nb\n```\n", "b\n"),
        (last_fenced_block, "```python\na\n```\n```python\nb", "a\n"),
        (last_fenced_block, "```json\n```", ""),
        (last_fenced_block, "no `code`", None),
    ],
)
def test_extraction(function, text, found):
    assert function(text) == found


@settings(deadline=None)
@given(st.text(max_size=200) | MARKS)
def test_any_text_is_read(text):
    for function in (last_boxed, last_hashes, last_answer_line, last_fenced_block):
        assert (function(text) or "") in text
    assert multiple_choice.choice(text) in (*"ABCDEFGHIJ", None)
    assert normalised_match([text], solution=["x y"])[0] in (0.0, 1.0)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12])
def test_hostile_text_takes_linear_time(text):
    start = time.process_time()
    multiple_choice.choice(text)
    last_fenced_block(text)
    numeric_match([text], solution=[1])
    assert time.process_time() - start < 2


@pytest.mark.parametrize("reward", [NumericMatch(relative=0.1, name="near"), MultipleChoice(letters="AB", name="ab")])
def test_configured_rewards_pickle_with_their_name(reward):
    copy = pickle.loads(pickle.dumps(reward))
    assert copy == reward
    assert copy.__name__ == reward.name != type(reward)().__name__


@pytest.mark.parametrize("reward", [numeric_match, normalised_match, multiple_choice], ids=lambda r: r.__name__)
def test_missing_gold_is_refused(reward):
    with pytest.raises(ValueError, match="Column 'solution' is None in row 1"):
        reward(["A", "A"], solution=["A 1", None])

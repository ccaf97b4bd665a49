"""`final_number` and `gsm8k_number`: spellings, properties, hostile input, the real GSM8K answers."""

import json
import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext import gsm8k_number
from trl_grpo_ext.rewards.numbers import final_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", 18),
        ("It is 18.", 18),
        ("18.00", 18),
        ("$18", 18),
        ("18%", 18),
        ("1,234", 1234),
        ("1,234,567.50", "1234567.5"),
        ("1{,}234", 1234),
        ("\\$1,\\!234", 1234),
        ("1, 2, 3", 3),
        ("1,2,3", 3),
        ("1,2345", 2345),
        ("-5", -5),
        ("\u22125", -5),
        ("-$5", -5),
        ("$-5", -5),
        ("x=-5", -5),
        ("16-4", 4),
        ("10 - 4", 4),
        ("(2)-4", 4),
        (".5", "0.5"),
        ("wait...5", 5),
        ("3.14.15", 15),
        ("1.5e3", 1500),
        ("first 3, then\n#### 18\nThat took 2 days", 18),
        ("#### 3\n#### 18", 18),
        ("####18", 18),
        ("#### $-5 in 2 days", -5),
        ("#### -$5 in 2 days", -5),
        ("####  -1,000", -1000),
        ("#### **18**", 18),
        ("#### Step 2 of 9\n\\boxed{18} done in 5", 18),
        ("\\boxed{3} or \\boxed{x_1 = 18} in 5 days", 18),
        ("\\boxed{\\text{about } {18}} and 5", 18),
        ("\\boxed{18", 18),
        ("\\boxed{none} but 18", 18),
        ("#### 18 is \\boxed{19}", 18),
        ("none", None),
        ("", None),
        ("...-$,%####\\boxed{}", None),
    ],
)
def test_spellings(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


@given(st.decimals(min_value=-(10**12), max_value=10**12, places=2, allow_nan=False), st.booleans())
def test_formatted_number_is_read_back(value, commas):
    written = f"{value:,}" if commas else str(value)
    for text in (written, f"5 and 6 make\n#### {written}", f"\\boxed{{{written}}} after 7", f"Answer: {written}."):
        assert final_number(text) == value


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_reward_is_equality_of_numbers(first, second):
    solution = f"some 3 steps\n#### {second:,}"
    assert gsm8k_number([f"The answer is ${first}.00"], solution=[solution]) == [float(first == second)]


@given(st.text(max_size=300))
def test_any_text_is_parsed(text):
    assert gsm8k_number([text], solution=["18"])[0] in (0.0, 1.0)


@given(st.text(alphabet="0123456789.,-$#eE{}\\bxd ", max_size=200))
def test_number_like_text_is_parsed(text):
    assert gsm8k_number([text], solution=["18"])[0] in (0.0, 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "9" * 10**6,
        "1" + ",111" * 250_000,
        "1" + ",111" * 250_000 + "1",
        "0." + "1" * 10**6,
        "1e" + "9" * 10**6,
        "#" * 10**6,
        ("####" + " " * 100) * 10_000,
        "####" + " " * 10**6,
        "\\boxed{" * 150_000,
        "\\boxed{" + "{" * 10**6,
        "$-" * 500_000,
        "." * 10**6,
        "1e999999999",
    ],
    ids=lambda text: text[:12],
)
def test_hostile_text_takes_linear_time(text):
    start = time.process_time()
    assert gsm8k_number([text], solution=["#### 18"]) == [0.0]
    assert time.process_time() - start < 2


def test_digits_beyond_the_bound_are_no_number():
    assert final_number("9" * 64) == Decimal("9" * 64)
    assert final_number("9" * 65) is None
    assert final_number("1e999") == Decimal("1e999")
    assert final_number("1e1000") is None


def test_completions_as_messages_and_golds_as_numbers():
    tool_use = [
        {"role": "assistant", "content": "calling with 5"},
        {"role": "tool", "content": "99"},
        {"role": "assistant", "content": [{"type": "text", "text": "so it is 18"}]},
    ]
    silent = [{"role": "assistant", "content": None}]
    assert gsm8k_number([tool_use, silent], solution=[18, 18.0]) == [1.0, 0.0]


def test_gold_without_a_number_is_refused():
    with pytest.raises(ValueError, match=r"'solution' holds no number in row 1 .*'yes'.*exact_match"):
        gsm8k_number(["1", "1"], solution=["1", "yes"])


def test_real_answers_against_themselves_and_their_neighbours(repository):
    path = repository.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
    if not path.exists():
        pytest.skip("../shared/data/gsm8k/train.jsonl is not here")
    golds = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(golds) == 7473
    assert gsm8k_number(golds, solution=golds) == [1.0] * len(golds)

    numbers = [float(gold.rpartition("####")[2].replace(",", "")) for gold in golds]
    neighbours = golds[1:] + golds[:1]
    equal = [float(a == b) for a, b in zip(numbers, numbers[1:] + numbers[:1], strict=True)]
    assert gsm8k_number(golds, solution=neighbours) == equal

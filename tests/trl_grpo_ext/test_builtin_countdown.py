"""The calculator against Fraction arithmetic, and the two games against hostile answers."""

import builtins
import os
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.rewards.arithmetic import evaluate_arithmetic
from trl_grpo_ext.rewards.games import countdown, game_of_24

# An expression as (text, value or None after a division by zero, numbers).
ATOMS = st.integers(0, 99).map(lambda number: (str(number), Fraction(number), [number]))


def _joined(left, operator, right):
    text, numbers = f"({left[0]} {operator} {right[0]})", left[2] + right[2]
    if left[1] is None or right[1] is None or (operator == "/" and right[1] == 0):
        return text, None, numbers
    operations = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "/": Fraction.__truediv__}
    return text, operations[operator](left[1], right[1]), numbers


EXPRESSIONS = st.recursive(
    ATOMS, lambda inner: st.builds(_joined, inner, st.sampled_from("+-*/"), inner), max_leaves=12
)


@settings(deadline=None)
@given(EXPRESSIONS)
def test_value_is_exact(expression):
    text, value, numbers = expression
    assert evaluate_arithmetic(text) == (None if value is None else (value, numbers))


@settings(deadline=None)
@given(st.lists(st.integers(1, 99), min_size=1, max_size=8), st.lists(st.sampled_from("+-*/"), min_size=7, max_size=7))
def test_precedence_is_pythons(numbers, operators):
    text = str(numbers[0]) + "".join(f"{o}{n}" for o, n in zip(operators, numbers[1:], strict=False))
    exact = "Fraction(" + text.translate({ord(o): f"){o}Fraction(" for o in "+-*/"}) + ")"
    # Text made here, from digits and four operators.
    assert evaluate_arithmetic(text)[0] == eval(exact, {"Fraction": Fraction})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-3 + 5", 2),
        ("2 \\times 3 \\div 4", Fraction(3, 2)),
        ("2×3÷4−1", Fraction(1, 2)),
        ("1/3*3", 1),
        ("--2", 2),
        ("\\left(1+2\\right)\\cdot 3", 9),
        ("2**3", None),
        ("2^3", None),
        ("7//2", None),
        ("1/0", None),
        ("1/(2-2)", None),
        ("1.5", None),
        ("2(3)", None),
        ("1 2", None),
        ("(1", None),
        ("1)", None),
        ("", None),
        ("()", None),
        ("+", None),
        ("x+1", None),
        ("\u0663+1", None),
        ("9" * 9, 999999999),
        ("9" * 10, None),
        ("(" * 32 + "1" + ")" * 32, 1),
        ("(" * 33 + "1" + ")" * 33, None),
        ("-" * 400 + "1", None),
        ("+".join("1" * 32), 32),
        ("+".join("1" * 33), None),
    ],
)
def test_expressions(text, value):
    result = evaluate_arithmetic(text)
    assert (result and result[0]) == value


@settings(deadline=None)
@given(st.text(max_size=600) | st.text(alphabet="0123456789+-*/() ", max_size=600))
def test_any_text_is_evaluated_or_refused(text):
    result = evaluate_arithmetic(text)
    assert result is None or (isinstance(result[0], Fraction) and len(result[1]) <= 32)
    assert countdown([text], nums=[[1, 2]], target=[3])[0] in (0.0, 1.0)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("<think>easy</think><answer>(95 - 38) + 47</answer>", 1.0),
        ("<answer>95 - 38 + 47 = 104</answer>", 1.0),
        ("\\boxed{95-38+47}", 1.0),
        ("Answer: 95 - 38 + 47", 1.0),
        ("I try.\n$95 - 38 + 47$", 1.0),
        ("<answer>95 - 38 + 47 = 105</answer>", 0.0),
        ("<answer>95 - 38 + 47 = x</answer>", 0.0),
        ("<answer>104</answer>", 0.0),
        ("<answer>95 + 9</answer>", 0.0),
        ("<answer>95 - 38 + 47 + 38 - 38</answer>", 0.0),
        ("<answer>95 + 38 - 47</answer>", 0.0),
        ("95 - 38 + 47\nI am done.", 0.0),
        ("", 0.0),
    ],
)
def test_countdown(completion, reward):
    assert countdown([completion], nums=[[95, 38, 47]], target=[104]) == [reward]


def test_repeated_numbers_must_all_be_used():
    assert countdown(["3*3+3", "3*3", "3+3+3+3-3"], nums=[[3, 3, 3]] * 3, target=[12, 9, 9]) == [1.0, 0.0, 0.0]


def test_game_of_24_needs_fractions():
    completions = ["<answer>8/(3-8/3)</answer>", "<answer>8*3*(8/8)</answer>", "<answer>8*3</answer>"]
    assert game_of_24(completions, nums=[[8, 3, 8, 3], [8, 3, 8, 8], [8, 3, 1]]) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "text",
    [
        "95**38**47",
        "95^38^47",
        "<answer>95**38**47</answer>",
        "94**61**6**4",
        "__import__('os').system('touch owned')",
        "(" * 200_000,
        "<answer>" + "9*" * 200_000 + "9</answer>",
        "9" * 500_000,
        "-" * 500_000,
        "\\left" * 100_000,
    ],
    ids=lambda text: text[:16],
)
def test_killers_return_zero_at_once_and_execute_nothing(text, monkeypatch):
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("executed"))
    for name in ("eval", "exec", "compile", "__import__"):
        monkeypatch.setattr(builtins, name, _forbidden(name))
    start = time.process_time()
    rewards = countdown([text], nums=[[95, 38, 47]], target=[5])
    duration = time.process_time() - start
    monkeypatch.undo()
    assert rewards == [0.0]
    assert duration < 0.2


def _forbidden(name):
    def refuse(*args, **kwargs):
        raise AssertionError(f"{name} was called")

    return refuse


@pytest.mark.parametrize(
    ("nums", "target", "message"),
    [
        ([None], [1], "Column 'nums' must hold a list of whole numbers in row 0"),
        (["1 2"], [1], "Column 'nums' must hold a list"),
        ([[1, 2.5]], [1], "Column 'nums' must hold a list"),
        ([[]], [1], "Column 'nums' must hold a list"),
        ([[1, 2]], [None], "Column 'target' must hold a whole number in row 0"),
        ([[1, 2], [1]], [3], r"Column 'nums' must hold one value per completion \(1\), not 2"),
    ],
)
def test_bad_columns_are_refused(nums, target, message):
    with pytest.raises(ValueError, match=message):
        countdown(["1+2"], nums=nums, target=target)

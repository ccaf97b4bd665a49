"""`exact_match`, `preference_overlap`, and what the three built-ins share."""

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext import REWARDS, exact_match, preference_overlap

OF_GROUND_TRUTH = ["exact_match", "gsm8k_number", "preference_overlap"]

WORDS = st.lists(st.sampled_from(["a", "b", "c", "dd", "E"]), max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("completion", "solution", "reward"),
    [
        ("18", "18", 1.0),
        ("  two\n words\t", "two words", 1.0),
        ("Two words", "two words", 0.0),
        ("18", "18.0", 0.0),
        ("", "", 1.0),
        ("181", "18", 0.0),
        ("18", 18, 1.0),
        ([{"role": "assistant", "content": " 18"}], "18", 1.0),
        ([{"role": "assistant", "content": "1"}, {"role": "assistant", "content": "18"}], "18", 1.0),
        ([{"role": "assistant", "content": "18"}, {"role": "tool", "content": "7"}], "18", 1.0),
        ([{"role": "user", "content": "18"}], "18", 0.0),
    ],
)
def test_exact_match(completion, solution, reward):
    assert exact_match([completion], solution=[solution], prompts=["p"], trainer_state=None) == [reward]


@given(st.text(), st.text())
def test_exact_match_is_equality_of_word_lists(first, second):
    assert exact_match([first, first], solution=[second, f"\n{first} "]) == [
        float(first.split() == second.split()),
        1.0,
    ]


def test_preference_overlap_by_hand():
    # chosen: overlap 2 (a once, b once), sizes 3 and 2; rejected: overlap 1 (c), sizes 3 and 4.
    reward = preference_overlap(["a b c"], chosen=["A, b!"], rejected=["c c d e"])
    assert reward == pytest.approx([2 * 2 / 5 - 2 * 1 / 7])


def test_repeated_words_count_as_often_as_both_have_them():
    assert preference_overlap(["a a a a"], chosen=["a"], rejected=["x"]) == pytest.approx([2 * 1 / 5])


def test_chinese_characters_are_words():
    reward = preference_overlap(["我喜欢猫"], chosen=["我喜欢狗"], rejected=["abc"])
    assert reward == pytest.approx([2 * 3 / 8])


@given(WORDS, WORDS, WORDS)
def test_preference_overlap_is_bounded_and_antisymmetric(completion, chosen, rejected):
    (reward,) = preference_overlap([completion], chosen=[chosen], rejected=[rejected])
    assert -1 <= reward <= 1
    assert preference_overlap([completion], chosen=[rejected], rejected=[chosen]) == [-reward]
    # F1 is symmetric: completion and reference may change places.
    assert preference_overlap([completion], chosen=[chosen], rejected=[""]) == preference_overlap(
        [chosen], chosen=[completion], rejected=[""]
    )


@given(WORDS.filter(str.strip))
def test_likeness_to_itself_is_one(text):
    assert preference_overlap([text, text], chosen=[text, "-"], rejected=["-", text]) == [1.0, -1.0]


def test_chosen_and_rejected_as_messages():
    chosen = [{"role": "user", "content": "no"}, {"role": "assistant", "content": "yes"}]
    rejected = [{"role": "assistant", "content": "no"}]
    assert preference_overlap(["yes"], chosen=[chosen], rejected=[rejected]) == [1.0]


def golds(name, value):
    columns = ("chosen", "rejected") if name == "preference_overlap" else ("solution",)
    return {column: ["7", value] for column in columns}


@pytest.mark.parametrize("missing", [None, math.nan])
@pytest.mark.parametrize("name", OF_GROUND_TRUTH)
def test_missing_ground_truth_is_refused(name, missing):
    with pytest.raises(ValueError, match=rf"Column '(solution|chosen)' is {missing} in row 1 .*drop the rows"):
        REWARDS[name](["7", "7"], **golds(name, missing))


def test_missing_rejected_is_refused():
    with pytest.raises(ValueError, match="Column 'rejected' is None in row 0"):
        preference_overlap(["a"], chosen=["a"], rejected=[None])


@pytest.mark.parametrize("name", OF_GROUND_TRUTH)
def test_one_ground_truth_per_completion(name):
    with pytest.raises(ValueError, match=r"one ground truth per completion \(1\), not 2"):
        REWARDS[name](["7"], **golds(name, "7"))


def test_a_single_string_is_not_a_column():
    with pytest.raises(ValueError, match="not one string"):
        exact_match(["1", "8"], solution="18")


def test_other_completion_types_are_refused():
    with pytest.raises(TypeError, match="not int"):
        exact_match([18], solution=["18"])


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_built_ins_have_their_name_and_pickle(name):
    assert REWARDS[name].__name__ == name
    assert pickle.loads(pickle.dumps(REWARDS[name])) == REWARDS[name]

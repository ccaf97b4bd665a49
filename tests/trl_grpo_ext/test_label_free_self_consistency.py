"""Majority vote: extraction, equivalence, refusals, skipped groups, the cross-prompt mode check."""

import math
import pickle
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext.rewards.label_free.answers import equivalence_classes, extract_answer, is_refusal, same_answer
from trl_grpo_ext.rewards.label_free.mode_check import ModeWindow
from trl_grpo_ext.rewards.label_free.self_consistency import SelfConsistencyReward


def vote(completions, prompts=None, **settings):
    reward = SelfConsistencyReward(**settings)
    return reward(completions=completions, prompts=prompts or ["p"] * len(completions))


@pytest.mark.parametrize(
    "texts",
    [
        ("#### 1,800", "so \\boxed{1800}", "The answer is $1800.00.", "3 + 2 ... 1800", "Answer: **1800**"),
        ("\\boxed{x + 1}", "The answer is $x+1$", "Answer:\nx + 1."),
        ("\\boxed{\\frac{1}{2}}", "#### 0.5", "Answer: 1/2", "so it is $\\dfrac12$"),
        ("\\boxed{5\\text{ cm}}", "#### 5", "it is 5.0"),
        ("\\boxed{\\{1, 2\\}}", "Answer: {2,1}"),
        ("The answer is Paris.", "I think of it.\nParis", "**Answer:** the paris"),
        ("-3", "Answer: \u22123", "#### -3.0"),
    ],
)
def test_one_answer_in_many_spellings(texts):
    assert equivalence_classes([extract_answer(text) for text in texts]) == [list(range(len(texts)))]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("18", "18.5"),
        ("\\boxed{2}", "\\boxed{2x}"),
        ("1" * 40, "1" * 39 + "2"),
        ("\\boxed{\\frac{1}{23}}", "\\boxed{\\frac{12}{3}}"),
        ("\\boxed{(1,2)}", "\\boxed{[1,2]}"),
        ("\\boxed{(1,2)}", "\\boxed{12}"),
        ("Answer: Paris", "Answer: Rome"),
        ("\\boxed{x}", "\\boxed{y}"),
    ],
)
def test_different_answers_stay_different(one, other):
    assert len(equivalence_classes([extract_answer(one), extract_answer(other)])) == 2


@pytest.mark.parametrize("text", ["", "   \n", "word " * 100, "9" * 300])
def test_no_answer(text):
    assert extract_answer(text) is None


@given(st.text(max_size=300))
def test_extraction_never_fails_and_is_short(text):
    answer = extract_answer(text)
    assert answer is None or 0 < len(answer) <= 200
    assert answer is None or same_answer(answer, answer)


@pytest.mark.parametrize("piece", ["\\boxed{", "####", "answer is ", "1,", "9", "{", "i can't ", "- "])
def test_extraction_is_linear(piece):
    start = time.perf_counter()
    text = piece * (200_000 // len(piece))
    is_refusal(text, extract_answer(text))
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don't know.", True),
        ("I'm sorry, I can't answer that in 100 words", True),
        ("The answer is unknown.", True),
        ("It cannot be determined", True),
        ("N/A", True),
        ("We don't know x yet, but then x = 5. #### 5", False),
        ("Nonetheless 7", False),
        ("Naples", False),
    ],
)
def test_refusals(text, expected):
    assert is_refusal(text, extract_answer(text)) is expected


def test_majority_of_extracted_answers_wins():
    texts = ["3 + 4 is 7", "It's \\boxed{7}", "#### 7.0", "8"]
    assert vote(texts) == [1.0, 1.0, 1.0, 0.0]
    assert vote([[{"role": "assistant", "content": text}] for text in texts]) == [1.0, 1.0, 1.0, 0.0]


def test_refusals_never_win_but_count_as_rows():
    refusal = "I don't know."
    assert vote([refusal, refusal, "7", refusal]) == [0.0, 0.0, 1.0, 0.0]
    assert vote([refusal, refusal, "7", refusal], min_agreement=0.3) == [None] * 4
    assert vote([refusal] * 3) == [None] * 3


@pytest.mark.parametrize(
    ("texts", "settings", "skipped"),
    [
        ("7777", {}, True),
        ("7777", {"max_agreement": 1.0}, False),
        ("7778", {"max_agreement": 0.7}, True),
        ("7788", {}, True),
        ("7789", {}, False),
        ("7789", {"min_agreement": 0.6}, True),
        ("7789", {"min_margin": 0.3}, True),
        ("7789", {"min_margin": 0.25}, False),
        ("1234", {}, True),
    ],
)
def test_groups_that_teach_nothing_are_skipped(texts, settings, skipped):
    rewards = vote(list(texts), **settings)
    assert (rewards == [None] * 4) is skipped
    assert skipped or rewards == [float(text == "7") for text in texts]


def test_groups_are_judged_apart():
    rewards = vote(list("11234444"), ["p"] * 4 + ["q"] * 4)
    assert rewards == [1.0, 1.0, 0.0, 0.0, None, None, None, None]


def close(one, other):
    return abs(float(one) - float(other)) <= 1


def last_word(text):
    return text.split()[-1]


def test_own_extractor_and_equality():
    assert vote(["a 1", "b 2", "c 9"], extract=last_word, equal=close, mode_window=0) == [1.0, 1.0, 0.0]
    assert equivalence_classes(["1", None, "9", "2", "8", "8"], close) == [[2, 4, 5], [0, 3]]


def groups_of(answers):
    """Four rows per prompt, three of them with the prompt's answer."""
    return [text for answer in answers for text in (answer, answer, answer, "x")], [
        f"prompt {i}" for i in range(len(answers)) for _ in range(4)
    ]


def test_an_answer_that_wins_everywhere_does_not_count():
    completions, prompts = groups_of(["0"] * 6 + ["5", "6"])
    reward = SelfConsistencyReward()
    rewards = reward(completions=completions, prompts=prompts)
    assert rewards == [None] * 24 + [1.0, 1.0, 1.0, 0.0] * 2
    assert reward.last_metrics["self_consistency/constant_groups"] == 0.75
    assert SelfConsistencyReward(mode_window=0)(completions=completions, prompts=prompts)[0] == 1.0
    assert SelfConsistencyReward(max_mode_share=0.8)(completions=completions, prompts=prompts)[0] == 1.0
    assert SelfConsistencyReward(min_mode_prompts=9)(completions=completions, prompts=prompts)[0] == 1.0


def test_the_mode_check_looks_back_over_calls_and_counts_a_prompt_once():
    reward = SelfConsistencyReward(min_mode_prompts=2, max_mode_share=0.5)
    assert reward(completions=list("777x"), prompts=["same"] * 4)[0] == 1.0
    assert reward(completions=list("777x"), prompts=["same"] * 4)[0] == 1.0
    assert reward(completions=list("777x"), prompts=["other"] * 4) == [None] * 4
    copy = pickle.loads(pickle.dumps(reward))
    assert copy(completions=list("777x"), prompts=["third"] * 4) == [None] * 4


def test_the_window_slides_and_a_new_run_empties_it():
    reward = SelfConsistencyReward(min_mode_prompts=2, mode_window=2)
    state = SimpleNamespace(global_step=5, max_steps=9)
    for i, answer in enumerate("7789"):
        reward(completions=[answer] * 3 + ["x"], prompts=[f"p{i}"] * 4, trainer_state=state)
    assert reward(completions=list("777x"), prompts=["new"] * 4, trainer_state=state)[0] == 1.0
    state.global_step = 0
    assert reward(completions=list("777x"), prompts=["next"] * 4, trainer_state=state)[0] == 1.0


def test_a_prompt_that_is_asked_again_is_remembered_longer():
    window = ModeWindow(size=2, minimum=1)
    for prompt in ("a", "b", "a", "c"):
        window.add(prompt, "7" if prompt == "b" else "8")
    assert window.share("8", str.__eq__) == 1.0


def test_plain_prompt_stands_in_for_the_prompt():
    reward = SelfConsistencyReward(min_mode_prompts=2)
    for lesson in "ab":
        rewards = reward(completions=list("777x"), prompts=[f"{lesson} p"] * 4, plain_prompt=["p"] * 4)
    assert rewards[0] == 1.0


def test_metrics_and_signal():
    logged = {}
    reward = SelfConsistencyReward(name="vote")
    assert math.isnan(reward.pseudo_signal)
    reward(completions=list("77784444"), prompts=["p"] * 4 + ["q"] * 4, log_metric=logged.__setitem__)
    assert logged == {"vote/agreement": 0.875, "vote/skipped_groups": 0.5, "vote/constant_groups": 0.0}
    assert logged == reward.last_metrics
    assert reward.pseudo_signal == 0.875


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_agreement": 1.5}, "min_agreement must be a share between 0 and 1, not 1.5"),
        ({"min_agreement": 0.9, "max_agreement": 0.5}, "must not exceed max_agreement"),
        ({"mode_window": -1}, "mode_window must be a whole number from 0, not -1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SelfConsistencyReward(**settings)

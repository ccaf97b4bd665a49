"""Ranks within the group, of another reward and by pairwise comparison."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext.rewards.label_free.ranking import PairwiseRanking, RankedReward


def value(completions, **kwargs):
    return [float(completion) if completion else None for completion in completions]


def larger(prompt, first, second):
    return 1.0 if float(first) > float(second) else 0.0


def first_wins(prompt, first, second):
    return 1.0


def test_ranks_of_another_reward():
    reward = RankedReward(value)
    assert reward.__name__ == "ranked_value"
    rewards = reward(completions=["1", "1000", "5", "7", "", "7"], prompts=list("aaabbb"))
    assert rewards == [-1.0, 1.0, 0.0, 0.0, None, 0.0]
    assert pickle.loads(pickle.dumps(reward))(completions=["2", "1"], prompts=["a", "a"]) == [1.0, -1.0]


def test_pairwise_win_rate():
    reward = PairwiseRanking(larger)
    assert reward(completions=["1", "3", "2", "9", "9", "0"], prompts=list("aaabbb")) == [0, 1, 0.5, 0.75, 0.75, 0]
    assert reward(completions=["1", "2"], prompts=["a", "b"]) == [None, None]
    assert pickle.loads(pickle.dumps(reward)).__name__ == "pairwise_ranking"


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=6))
def test_a_preference_for_a_position_cancels(texts):
    assert PairwiseRanking(first_wins)(completions=texts, prompts=["p"] * len(texts)) == [0.5] * len(texts)


@given(st.lists(st.integers(0, 5).map(str), min_size=2, max_size=7))
def test_win_rates_have_mean_one_half(texts):
    rewards = PairwiseRanking(larger)(completions=texts, prompts=["p"] * len(texts))
    assert sum(rewards) == pytest.approx(len(texts) / 2)
    assert all(0 <= reward <= 1 for reward in rewards)


def test_compare_must_return_a_share():
    with pytest.raises(ValueError, match=r"not 3\.0"):
        PairwiseRanking(lambda prompt, first, second: 3)(completions=["a", "b"], prompts=["p", "p"])

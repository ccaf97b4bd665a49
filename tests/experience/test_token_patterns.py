"""The pure functions behind the two logits processors."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext.experience.token_patterns import END, bias, following, prefix_tree, token_shares

TOKENS = st.lists(st.integers(0, 5), min_size=1, max_size=6)
WEIGHTED = st.lists(st.tuples(TOKENS, st.floats(1e-300, 1e308)), max_size=6)


def test_shares_by_hand():
    found = token_shares([([1, 1, 2, 9], 3.0), ([2], 1.0)], frozenset([9]))
    assert found == pytest.approx({1: 3 * (2 / 3) / 4, 2: (3 * (1 / 3) + 1) / 4})


@given(WEIGHTED, st.frozensets(st.integers(0, 5)))
def test_shares_are_a_distribution_over_what_is_not_excluded(responses, excluded):
    found = token_shares(responses, excluded)
    assert not found.keys() & excluded
    if {token for tokens, _ in responses for token in tokens} - excluded:
        assert math.isclose(sum(found.values()), 1.0)
    else:
        assert found == {}


@given(WEIGHTED.filter(bool), st.floats(0, 20), st.floats(1e-6, 10))
def test_the_bias_is_between_nothing_and_the_strength(responses, strength, smoothing):
    shares = token_shares(responses)
    found = bias(shares, strength, smoothing)
    assert found.keys() == shares.keys()
    assert all(0 <= value <= strength * (1 + 1e-12) for value in found.values())
    assert math.isclose(max(found.values()), strength)
    ordered = sorted(shares, key=shares.__getitem__)
    assert [found[token] for token in ordered] == sorted(found.values())


def test_smoothing_is_between_proportional_and_equal():
    shares = {1: 0.9, 2: 0.1}
    assert bias(shares, 1.0, 1e6)[2] == pytest.approx(1 / 9, rel=1e-3)
    assert bias(shares, 1.0, 1e-9)[2] > 0.85
    assert bias({}, 1.0, 0.01) == {}


@given(st.lists(TOKENS, max_size=6), TOKENS)
def test_the_tree_holds_the_beginnings_of_the_responses_and_nothing_else(responses, tokens):
    node = following(prefix_tree(responses), tokens)
    going_on = {text[len(tokens)] for text in responses if len(text) > len(tokens) and text[: len(tokens)] == tokens}
    assert node.keys() - {END} == going_on
    assert (END in node) == (tokens in responses)

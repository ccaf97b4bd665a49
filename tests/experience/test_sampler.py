import math
from collections import Counter
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.experience import AdvantageSampler, SumTree, gumbel_top_k

# Chance of a wrong alarm below 1e-6 by Wilson and Hilferty's approximation of the chi-square distribution.
Z = 4.75
ADVANTAGES = [0.0, 0.5, 1.0, -1.0, 2.0]


def softmax(advantages, temperature):
    top = max(advantages)
    weights = [math.exp((advantage - top) / temperature) for advantage in advantages]
    return [weight / sum(weights) for weight in weights]


def assert_law(counts, law):
    total = sum(counts.values())
    assert set(counts) <= set(law)
    statistic = sum((counts[key] - total * share) ** 2 / (total * share) for key, share in law.items())
    freedom = len(law) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + Z * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit, f"chi-square {statistic:.1f} with {freedom} degrees of freedom, limit {limit:.1f}"


def pairs_law(shares):
    """Plackett-Luce: the first by its share, the second by its share of what is left."""
    return {(i, j): shares[i] * shares[j] / (1 - shares[i]) for i, j in permutations(range(len(shares)), 2)}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_single_draws_follow_the_softmax(temperature):
    sampler, random = AdvantageSampler(enumerate(ADVANTAGES), temperature), Random(1)
    counts = Counter(sampler.draw(random) for _ in range(20_000))
    assert_law(counts, dict(enumerate(softmax(ADVANTAGES, temperature))))


@pytest.mark.parametrize("temperature", [0.7, math.inf])
def test_draws_without_replacement_follow_plackett_luce(temperature):
    sampler, random = AdvantageSampler(enumerate(ADVANTAGES), temperature), Random(2)
    counts = Counter(tuple(sampler.draw_distinct(2, random)) for _ in range(20_000))
    assert_law(counts, pairs_law(softmax(ADVANTAGES, temperature)))


@pytest.mark.parametrize("temperature", [0.7, math.inf])
def test_gumbel_top_k_has_the_same_law(temperature):
    random = Random(3)
    counts = Counter()
    for _ in range(20_000):
        counts[tuple(key for key, _ in gumbel_top_k(enumerate(ADVANTAGES), 2, temperature, random))] += 1
    assert_law(counts, pairs_law(softmax(ADVANTAGES, temperature)))


def test_law_holds_after_additions_changes_and_removals():
    sampler, random = AdvantageSampler([(100 + place, 3.0) for place in range(5)]), Random(4)
    for key, advantage in enumerate(ADVANTAGES):
        sampler.set(key, -advantage)
        sampler.remove(100 + key)
    for key, advantage in enumerate(ADVANTAGES):
        sampler.set(key, advantage)
    sampler.remove(4)
    counts = Counter(sampler.draw(random) for _ in range(20_000))
    assert_law(counts, dict(enumerate(softmax(ADVANTAGES[:4], 1.0))))


def test_temperature_zero_draws_the_best_and_ties_alike():
    sampler, random = AdvantageSampler([(0, 1.0), (1, 2.0), (2, 2.0), (3, -5.0)], 0.0), Random(5)
    assert_law(Counter(sampler.draw(random) for _ in range(5_000)), {1: 0.5, 2: 0.5})
    first, second, third = zip(*(sampler.draw_distinct(3, random) for _ in range(200)), strict=True)
    assert set(first) == set(second) == {1, 2}
    assert set(third) == {0}
    assert [key for key, _ in gumbel_top_k(enumerate([1.0, 3.0, 2.0]), 2, 0.0, random)] == [1, 2]


def test_ties_at_temperature_zero_survive_changes():
    sampler, random = AdvantageSampler([(0, 1.0), (1, 2.0)], 0.0), Random(5)
    sampler.set(2, 2.0)
    sampler.remove(1)
    assert {sampler.draw(random) for _ in range(50)} == {2}
    sampler.remove(2)
    assert {sampler.draw(random) for _ in range(50)} == {0}


@pytest.mark.parametrize("advantages", [[1e308, -1e308, 0.0], [1e6, 1e6 - 1, 0.0], [-1e300, -1e300, -1e300]])
@pytest.mark.parametrize("temperature", [0.1, 1e-300, 2.0])
def test_nothing_overflows(advantages, temperature):
    sampler, random = AdvantageSampler(enumerate(advantages), temperature), Random(6)
    assert advantages[sampler.draw(random)] == max(advantages) or temperature > 0.5
    assert sorted(sampler.draw_distinct(3, random)) == [0, 1, 2]
    assert sorted(key for key, _ in gumbel_top_k(enumerate(advantages), 3, temperature, random)) == [0, 1, 2]


def test_law_of_what_is_left_holds_where_its_weights_underflow():
    """The best is e^10000 times as likely as the others, so their weights are 0 beside it."""
    sampler, random = AdvantageSampler([(9, 1e4), *enumerate(ADVANTAGES)]), Random(7)
    drawn = [sampler.draw_distinct(2, random) for _ in range(20_000)]
    assert {first for first, _ in drawn} == {9}
    assert_law(Counter(second for _, second in drawn), dict(enumerate(softmax(ADVANTAGES, 1.0))))
    sampler.remove(9)
    assert_law(Counter(sampler.draw(random) for _ in range(20_000)), dict(enumerate(softmax(ADVANTAGES, 1.0))))


def test_growing_advantages_move_the_reference():
    sampler, random = AdvantageSampler([(0, 0.0)]), Random(8)
    for key in range(1, 50):
        sampler.set(key, key * 1000.0)
        assert sampler.draw(random) == key


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.one_of(st.none(), st.floats(-50, 50))), max_size=60),
    st.sampled_from([0.0, 0.3, 1.0, math.inf]),
)
def test_any_history_leaves_the_tree_of_what_is_left(steps, temperature):
    sampler, held = AdvantageSampler(temperature=temperature), {}
    for key, advantage in steps:
        if advantage is not None:
            sampler.set(key, advantage)
            held[key] = advantage
        elif key in held:
            sampler.remove(key)
            del held[key]
    assert dict(sampler.items()) == held
    assert len(sampler) == len(held)
    assert sorted(sampler.draw_distinct(99, Random(0))) == sorted(held)
    fresh = AdvantageSampler(sampler.items(), temperature)
    assert [sampler.draw(Random(seed)) for seed in range(5) if held] == [
        fresh.draw(Random(seed)) for seed in range(5) if held
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.floats(0, 1, exclude_max=True))
def test_sum_tree_finds_what_a_running_sum_finds(weights, share):
    tree = SumTree(weights)
    if tree.total <= 0:
        return
    place = tree.find(share * tree.total)
    assert weights[place] > 0
    before = math.fsum(weights[:place])
    slack = 1e-9 * tree.total
    assert before - slack <= share * tree.total <= before + weights[place] + slack


def test_drawing_more_than_there_is_gives_all_and_none_gives_an_error():
    sampler = AdvantageSampler([(5, 0.0)])
    assert sampler.draw_distinct(3, Random(0)) == [5]
    sampler.remove(5)
    assert sampler.draw_distinct(3, Random(0)) == []
    with pytest.raises(IndexError, match="nothing to draw from"):
        sampler.draw(Random(0))


@pytest.mark.parametrize("temperature", [-0.1, math.nan, "1", True])
def test_bad_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        AdvantageSampler([], temperature)


@pytest.mark.parametrize("advantage", [math.nan, math.inf])
def test_bad_advantages_are_refused(advantage):
    with pytest.raises(ValueError, match="finite"):
        AdvantageSampler([(0, advantage)])
    with pytest.raises(ValueError, match="finite"):
        AdvantageSampler().set(0, advantage)

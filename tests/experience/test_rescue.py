"""Which dead groups are due for a hint: the pure rule, and what the callback refuses."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.experience import ExperienceLibrary, RescueCallback
from trl_grpo_ext.experience.rescue import RescueRule, hint_probability, prompt_key, uniform

REWARDS = st.one_of(st.none(), st.just(math.nan), st.sampled_from([-1.0, 0.0, 0.5, 1.0]))
VISIT = st.lists(st.tuples(st.sampled_from("abcd"), REWARDS), max_size=6)


def due(rule, counts, visit, progress=0.0):
    return rule.due(counts, [key for key, _ in visit], [reward for _, reward in visit], progress)


def test_a_prompt_is_due_at_its_low_visit_number_m_and_from_then_on():
    rule, counts, seen = RescueRule(visits=3), {}, []
    for _ in range(5):
        found, counts = due(rule, counts, [("a", 0.0)])
        seen.append(found)
    assert seen == [[], [], [0], [0], [0]] and counts == {"a": 5}


@pytest.mark.parametrize("between", [None, 1.0], ids=["rewards that differ", "solved"])
def test_a_visit_that_is_not_low_begins_anew(between):
    rule, counts = RescueRule(visits=2), {"a": 1, "b": 4}
    found, counts = due(rule, counts, [("a", between)])
    assert (found, counts) == ([], {"b": 4})
    assert due(rule, counts, [("a", 0.0)]) == ([], {"a": 1, "b": 4})


def test_a_visit_without_a_reward_says_nothing():
    assert due(RescueRule(visits=2), {"a": 1}, [("a", math.nan)]) == ([], {"a": 1})


def test_a_prompt_that_comes_twice_is_visited_twice():
    assert due(RescueRule(visits=2), {}, [("a", 0.0), ("b", 0.0), ("a", 0.0)]) == ([2], {"a": 2, "b": 1})


def test_the_highest_low_reward_is_low_up_to_rounding():
    rule = RescueRule(visits=1, reward_at_most=0.1)
    assert due(rule, {}, [("a", 0.1 + 1e-8), ("b", 0.10001), ("c", -3.0)])[0] == [0, 2]


@pytest.mark.parametrize(
    ("progress", "anneal", "expected"),
    [(0.0, None, 1.0), (1.0, None, 1.0), (0.0, 0.5, 1.0), (0.25, 0.5, 0.5), (0.5, 0.5, 0.0), (1.0, 0.5, 0.0)],
)
def test_the_probability_of_a_hint_falls_to_zero(progress, anneal, expected):
    assert hint_probability(progress, anneal) == pytest.approx(expected)


def test_annealing_gives_hints_with_that_probability():
    rule, visit = RescueRule(visits=1, anneal=1.0), [(str(n), 0.0) for n in range(4000)]
    for progress in (0.0, 0.25, 0.9, 1.0):
        found, counts = due(rule, {}, visit, progress)
        # Five standard deviations.
        assert abs(len(found) - 4000 * (1 - progress)) <= 5 * math.sqrt(1000)
        assert len(counts) == 4000


def test_chance_differs_by_seed_prompt_and_visit_and_is_the_same_again():
    values = [uniform(seed, key, count) for seed in (0, 1) for key in "ab" for count in (1, 2)]
    assert len(set(values)) == 8 and all(0.0 <= value < 1.0 for value in values)
    assert uniform(0, "a", 1) == values[0]
    assert prompt_key("a") == prompt_key("a") != prompt_key([{"role": "user", "content": "a"}])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(VISIT, max_size=8),
    st.integers(1, 4),
    st.sampled_from([-0.5, 0.0, 0.5]),
    st.sampled_from([None, 0.3, 1.0]),
    st.integers(0, 3),
)
def test_the_rule_against_its_words(visits, least, low, anneal, seed):
    """A simulation that keeps the whole history of each prompt, instead of a count."""
    rule, counts, history = RescueRule(least, low, anneal, seed), {}, {}
    for number, visit in enumerate(visits):
        progress = number / len(visits)
        before = dict(counts)
        found, counts = due(rule, counts, visit, progress)
        assert due(rule, before, visit, progress) == (found, counts)
        for group, (key, reward) in enumerate(visit):
            if reward is None or not math.isnan(reward):
                history.setdefault(key, []).append(reward is not None and reward <= low)
            run = [*reversed(history.get(key, [])), False].index(False)
            is_low = reward is not None and not math.isnan(reward) and reward <= low
            chance = 1.0 if anneal is None else max(0.0, 1.0 - progress / anneal)
            assert (group in found) == (is_low and run >= least and uniform(seed, key, run) < chance)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"mode": "hinted"}, ValueError, "mode must be one of on_policy_hinted, off_policy"),
        ({"visits": 0}, ValueError, "visits must be at least 1"),
        ({"visits": 1.5}, TypeError, "visits must be a whole number"),
        ({"rerolls": 0}, ValueError, "rerolls must be at least 1"),
        ({"rerolls": True}, TypeError, "rerolls must be a whole number"),
        ({"reward_at_most": math.nan}, ValueError, "reward_at_most must be a finite number"),
        ({"anneal": 0.0}, ValueError, "anneal is the share of the training"),
        ({"anneal": 1.5}, ValueError, "anneal is the share of the training"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"inject": "all"}, ValueError, "inject must be one of"),
        ({"position": "middle"}, ValueError, "position must be one of"),
        ({"template": "no place"}, ValueError, "template must hold"),
        ({"token_budget": -1}, ValueError, "token_budget must be at least 0"),
    ],
    ids=str,
)
def test_a_bad_argument_is_refused_at_once(arguments, error, match):
    with pytest.raises(error, match=match):
        RescueCallback(ExperienceLibrary(), **arguments)


def test_a_bad_library_is_refused_at_once():
    with pytest.raises(TypeError, match="library must be an ExperienceLibrary or the path"):
        RescueCallback(None)


def test_its_state_is_plain_data(tmp_path):
    callback = RescueCallback(tmp_path / "experiences.db", visits=3, anneal=0.5)
    callback.counts = {"a": 2}
    state = json.loads(json.dumps(callback.state()))
    again = RescueCallback(**state["args"])
    assert again.rule == callback.rule and state["args"]["library"] == str(tmp_path / "experiences.db")

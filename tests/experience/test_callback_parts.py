"""The pure parts below the callback: dropout, groups of rollouts, usefulness, rows."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext.experience import ExperienceLibrary, RolloutGroup
from trl_grpo_ext.experience.observation import (
    ObservedGroup,
    Rollout,
    generation_metrics,
    known_reward,
    observed_groups,
    usage_gains,
)
from trl_grpo_ext.experience.rollout_rows import injected_row, plain_prompt, plain_row, selection_of
from trl_grpo_ext.experience.selection import Selection, Selector, drops_group
from trl_grpo_ext.experience.sharing import store_groups

GIVEN, WITHHELD, NOTHING = Selection("text", ("a", "b"), 4), Selection(withheld=True), Selection()


def test_dropout_drops_its_share():
    for share in (0.0, 0.1, 0.5, 1.0):
        dropped = sum(drops_group(0, step, f"prompt {step % 7}", share) for step in range(4000))
        assert abs(dropped / 4000 - share) <= 4 * math.sqrt(share * (1 - share) / 4000)


@given(st.integers(0, 9), st.integers(0, 9), st.text(), st.floats(0, 1), st.floats(0, 1))
def test_more_dropout_drops_no_fewer(seed, step, prompt, one, other):
    low, high = sorted((one, other))
    assert drops_group(seed, step, prompt, low) <= drops_group(seed, step, prompt, high)
    assert not drops_group(seed, step, prompt, 0.0) and drops_group(seed, step, prompt, 1.0)


def test_dropout_depends_on_every_part():
    base = [drops_group(0, step, "x", 0.5) for step in range(64)]
    assert base != [drops_group(1, step, "x", 0.5) for step in range(64)]
    assert base != [drops_group(0, step, "y", 0.5) for step in range(64)]
    assert len(set(base)) == 2


def rollouts(*prompts):
    return [Rollout(prompt, f"answer {place}", NOTHING) for place, prompt in enumerate(prompts)]


def test_equal_rollouts_of_one_step_are_one_group_and_of_two_steps_two():
    library = ExperienceLibrary()
    rows, rewards = rollouts("p", "p", "q", "q"), [0.0, 1.0, 0.0, 1.0]
    for step, total in ((1, 4), (1, 4), (2, 8)):
        store_groups(library, observed_groups(rows, rewards, 2, step), step)
        assert library.counters().rollouts == total
    store_groups(library, observed_groups(rows, rewards, 2, 2, first=2), 2)
    assert library.counters().rollouts == 12, "a second generation of the step is another one"


def test_a_prompt_without_text_is_left_out():
    found = observed_groups(rollouts(" ", " ", "q", "q"), [0.0, 1.0, 0.0, 1.0], 2, 1)
    assert [item.group.prompt for item in found] == ["q"]


def observed(selection, *rewards):
    return ObservedGroup(RolloutGroup("p", ["x"] * len(rewards), list(rewards)), selection)


def test_gains_are_against_the_groups_that_chance_left_without():
    groups = [
        observed(GIVEN, 3.0, 1.0),
        observed(WITHHELD, 1.0, None),
        observed(WITHHELD, 0.0),
        observed(NOTHING, 9.0),
    ]
    assert usage_gains([*groups, observed(GIVEN, None)]) == [("a", 1.5), ("b", 1.5)]


def test_without_a_control_nothing_is_known():
    assert usage_gains([observed(GIVEN, 3.0), observed(NOTHING, 1.0), observed(WITHHELD, None)]) == []


def test_metrics_of_a_generation():
    selections = [GIVEN, GIVEN, WITHHELD, NOTHING]
    found = generation_metrics(selections, [2.0, None, 5.0, 7.0])
    assert found == {"injected_share": 0.5, "tokens": 4.0, "reward_with": 2.0, "reward_without": 5.0}
    assert generation_metrics([NOTHING], [1.0]) == {"injected_share": 0.0}


@pytest.mark.parametrize("value, known", [(1.5, 1.5), (math.nan, None), (math.inf, None), (-math.inf, None)])
def test_rewards_that_there_are_not(value, known):
    assert known_reward(value) == known


@pytest.mark.parametrize("prompt", ["why?", [{"role": "user", "content": "why?"}]])
def test_a_row_there_and_back(prompt):
    row = {"prompt": prompt, "answer": 4}
    injected = injected_row(row, GIVEN, Selector())
    assert injected["prompt"] != prompt and selection_of(injected) is GIVEN
    assert list(injected)[:2] == list(row)
    assert plain_row(injected, plain_prompt(injected, injected["prompt"])) == row
    assert selection_of(injected | {"prompt": "another"}) is None
    assert selection_of(row) == NOTHING
    assert selection_of(row | {"plain_prompt": "x"}) is None

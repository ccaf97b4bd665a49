"""The pure parts of sampling: what is dead, what is filtered, what is drawn again."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.sampling import (
    GROUP_FILTERS,
    draw_indices,
    groups_to_redraw,
    pad_columns,
    rejected_by_filter,
    replacements,
    row_sources,
    withhold_rows,
    zero_variance_reasons,
)

NAN = math.nan


def test_dead_groups_by_reason():
    rewards = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.5, 0.5, NAN, 1.0, 0.0, 1.0, NAN, NAN])
    assert zero_variance_reasons(rewards, 2) == {"unscored": 2, "solved": 1, "failed": 1, "constant": 1}


def test_one_value_everywhere_is_neither_solved_nor_failed():
    assert zero_variance_reasons(torch.ones(4), 2) == {"unscored": 0, "solved": 0, "failed": 0, "constant": 2}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, NAN]), min_size=3, max_size=3), min_size=1, max_size=6))
def test_every_dead_group_has_one_reason(groups):
    dead = sum(len({r for r in group if r == r}) < 2 for group in groups)
    assert sum(zero_variance_reasons(torch.tensor(groups).flatten(), 3).values()) == dead


def scored_batch():
    return {
        "completion_mask": torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]]),
        "num_items_in_batch": torch.tensor(8),
    }


@pytest.mark.parametrize(
    "policy, loss_type, items, scale",
    [
        ("drop", "grpo", 4, 2.0),
        ("drop", "dr_grpo", 4, 2.0),
        ("drop", "dapo", 4, 1.0),
        ("drop", "bnpo", 4, 1.0),
        ("keep_for_normaliser", "grpo", 8, None),
    ],
)
def test_withheld_rows_leave_the_loss(policy, loss_type, items, scale):
    batch, rows = scored_batch(), torch.tensor([False, True, True, False])
    result = withhold_rows(batch, rows, (4, 2, 4), policy, loss_type)
    assert result["completion_mask"].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 1, 0]]
    assert result["num_items_in_batch"].item() == items
    assert (result["loss_scale"].item() if scale else result.get("loss_scale")) == scale
    assert batch["completion_mask"].sum() == 8


def test_nothing_left_divides_by_no_zero():
    result = withhold_rows(scored_batch(), torch.ones(4, dtype=torch.bool), (4, 0, 0), "drop", "grpo")
    assert (result["num_items_in_batch"].item(), result["loss_scale"].item()) == (1, 1.0)


def test_filters_of_gfpo():
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, NAN])
    lengths = torch.tensor([8, 2, 4, 6, 1, 9, 9, 1])
    by_length = rejected_by_filter(rewards, lengths, 4, 2, GROUP_FILTERS["shortest"])
    assert by_length.tolist() == [True, False, False, True, False, False, True, True]
    by_token = rejected_by_filter(rewards, lengths, 4, 2, GROUP_FILTERS["reward_per_token"])
    assert by_token.tolist() == [True, True, False, False, False, True, False, True]


def test_a_filter_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"one score per completion, shape \(1, 4\); got \(1,\)"):
        rejected_by_filter(torch.zeros(4), torch.ones(4), 4, 2, lambda rewards, lengths: rewards.sum(dim=1))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(2, 6), st.integers(1, 4))
def test_a_filter_keeps_as_many_of_each_group_whatever_the_scores(data, size, groups):
    numbers = st.sampled_from([0.0, 1.0, NAN, 3.0])
    values = data.draw(st.lists(numbers, min_size=size * groups, max_size=size * groups))
    keep = data.draw(st.integers(1, size))
    rejected = rejected_by_filter(
        torch.tensor(values), torch.ones(len(values)), size, keep, lambda rewards, lengths: rewards
    )
    assert rejected.view(groups, size).sum(dim=1).tolist() == [size - keep] * groups


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 8), st.integers(1, 6))
def test_redrawn_rows_divide_among_the_ranks(dead, size, ranks):
    count = groups_to_redraw(dead, size, ranks)
    assert count >= dead and count * size % ranks == 0 and count < dead + ranks


def test_drawn_indices_are_others_and_start_again_when_there_are_too_few():
    assert draw_indices([4, 1, 3, 0], lambda index: index == 1, 2) == [4, 3]
    assert draw_indices([4, 1], lambda index: index == 1, 3) == [4, 4, 4]
    assert draw_indices([1], lambda index: True, 3) == []


@settings(max_examples=80, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.lists(st.booleans(), max_size=8), st.integers(1, 4))
def test_replaced_groups_are_the_dead_and_sources_the_living(dead, fresh_dead, size):
    pairs = replacements(torch.tensor(dead), torch.tensor(fresh_dead, dtype=torch.bool))
    assert len(pairs) == min(sum(dead), len(fresh_dead) - sum(fresh_dead))
    sources = row_sources(len(dead), pairs, size)
    origin = [f"old {g} {r}" for g in range(len(dead)) for r in range(size)]
    origin += [f"new {g} {r}" for g in range(len(fresh_dead)) for r in range(size)]
    rows = [origin[source] for source in sources]
    for group in range(len(dead)):
        source = dict(pairs).get(group)
        name = f"old {group}" if source is None else f"new {source}"
        assert rows[group * size : (group + 1) * size] == [f"{name} {row}" for row in range(size)]
        assert source is None or (dead[group] and not fresh_dead[source])


def test_padding_goes_to_its_side():
    tensor = torch.tensor([[1, 2]])
    assert pad_columns(tensor, 4, 9, left=True).tolist() == [[9, 9, 1, 2]]
    assert pad_columns(tensor, 4, 9, left=False).tolist() == [[1, 2, 9, 9]]
    assert pad_columns(tensor, 2, 9, left=True) is tensor


def test_random_state_is_left_alone():
    before = torch.get_rng_state(), random.getstate()
    zero_variance_reasons(torch.rand(8, generator=torch.Generator().manual_seed(0)), 4)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]

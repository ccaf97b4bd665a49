"""Group-relative advantages: worked examples, plain loops, and what must hold for all rewards."""

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.advantages import AdvantageConfig, constant_groups, group_advantages, rank_rewards

NAN = float("nan")
BASELINES = ("mean", "leave_one_out", "median")
SCALES = ("std", "mad", "none", "batch")
# Multiples of 1/8: sums and shifts of them are exact in float32.
reward = st.integers(-32, 32).map(lambda value: value / 8)
some_reward = st.one_of(reward, reward, reward, st.just(NAN))
groups_of_rewards = st.integers(2, 6).flatmap(
    lambda size: st.lists(st.lists(some_reward, min_size=size, max_size=size), min_size=1, max_size=4)
)
configs = st.builds(
    dict,
    baseline=st.sampled_from(BASELINES),
    scale=st.sampled_from(SCALES),
    ddof=st.sampled_from([0, 1]),
    ranks=st.booleans(),
)


def advantages(groups, **options):
    """Advantages of a list of groups, as such a list."""
    size = len(groups[0])
    config = AdvantageConfig(num_generations=size, **options)
    flat = torch.tensor([value for group in groups for value in group], dtype=torch.float64)
    return group_advantages(flat, config).view(-1, size).tolist()


def reference(groups, baseline="mean", scale="std", ddof=1, eps=1e-4, floor=0.0, clip=None, ranks=False):
    """The same with Python's statistics."""
    found = [[rank_of(value, group) if ranks else value for value in group] for group in groups]
    everything = [value for group in found for value in group if not math.isnan(value)]
    result = []
    for raw, group in zip(groups, found, strict=True):
        kept = [value for value in group if not math.isnan(value)]
        distinct = {value for value in raw if not math.isnan(value)}
        if len(distinct) < 2:
            result.append([0.0] * len(group))
            continue
        divisor = 1.0
        if scale != "none":
            divisor = max(spread(everything if scale == "batch" else kept, scale, ddof), floor) + eps
        row = [0.0 if math.isnan(value) else (value - center(value, kept, baseline)) / divisor for value in group]
        result.append(row if clip is None else [min(max(value, -clip), clip) for value in row])
    return result


def rank_of(value, group):
    kept = [other for other in group if not math.isnan(other)]
    if math.isnan(value):
        return NAN
    below, equal = sum(other < value for other in kept), sum(other == value for other in kept)
    return (below + (equal - 1) / 2) / max(len(kept) - 1, 1)


def center(value, kept, baseline):
    if baseline == "leave_one_out":
        return (sum(kept) - value) / (len(kept) - 1)
    return statistics.mean(kept) if baseline == "mean" else statistics.median(kept)


def spread(kept, scale, ddof):
    if scale == "mad":
        deviations = [abs(value - statistics.median(kept)) for value in kept]
        return statistics.median(deviations) or statistics.mean(deviations)
    return statistics.stdev(kept) if ddof else statistics.pstdev(kept)


class TestWorkedExamples:
    def test_population_standard_deviation(self):
        found = advantages([[2.0, 0.0, 2.0, 0.0]], ddof=0, eps=1e-8)
        assert found[0] == pytest.approx([1, -1, 1, -1], abs=1e-7)

    def test_unnormalised(self):
        assert advantages([[1.0, 0.0, 1.0, 0.0, 1.0]], scale="none")[0] == pytest.approx([0.4, -0.6, 0.4, -0.6, 0.4])

    def test_trl_default_divides_by_the_sample_standard_deviation(self):
        expected = 1 / (2 / math.sqrt(3) + 1e-4)
        assert advantages([[2.0, 0.0, 2.0, 0.0]])[0] == pytest.approx([expected, -expected] * 2)

    def test_leave_one_out_is_the_mean_of_the_others(self):
        found = advantages([[3.0, 1.0, 2.0]], baseline="leave_one_out", scale="none")[0]
        assert found == pytest.approx([3 - 1.5, 1 - 2.5, 2 - 2])

    def test_median_and_its_deviation(self):
        # Median 2, deviations 1 2 0 8 1, their median 1.
        found = advantages([[1.0, 4.0, 2.0, 10.0, 3.0]], baseline="median", scale="mad", eps=1e-3)[0]
        assert found == pytest.approx([(value - 3) / (1 + 1e-3) for value in (1, 4, 2, 10, 3)])

    def test_an_odd_group_has_a_pivot_with_advantage_zero(self):
        assert advantages([[5.0, 1.0, 2.0]], baseline="median")[0][2] == 0.0

    def test_mad_of_a_majority_with_one_reward_is_the_mean_deviation(self):
        # The median absolute deviation is 0 and would make the advantage of the last row 1e4.
        found = advantages([[0.0, 0.0, 0.0, 0.0, 1.0]], baseline="median", scale="mad")[0]
        assert found == pytest.approx([0, 0, 0, 0, 1 / (0.2 + 1e-4)])

    def test_batch_scale_is_over_all_rows(self):
        found = advantages([[0.0, 2.0], [10.0, 10.0]], scale="batch", ddof=0, eps=1e-9)
        divisor = statistics.pstdev([0, 2, 10, 10])
        assert found[0] == pytest.approx([-1 / divisor, 1 / divisor])
        assert found[1] == [0.0, 0.0]

    def test_ranks_ignore_distances_and_average_ties(self):
        assert rank_rewards(torch.tensor([[5.0, -100.0, 7.0, 5.0, NAN]])).tolist()[0][:4] == pytest.approx(
            [0.5, 0.0, 1.0, 0.5]
        )
        near, far = ([[0.0, 1.0, 2.0]], [[0.0, 1.0, 1e6]])
        assert advantages(near, ranks=True) == advantages(far, ranks=True)

    def test_floor_keeps_a_near_constant_group_from_exploding(self):
        group = [[1.0, 1.0, 1.0, 1.001]]
        assert max(advantages(group)[0]) > 1
        assert max(advantages(group, floor=0.1)[0]) < 0.01

    def test_clip(self):
        found = advantages([[0.0] * 9 + [1.0]], clip=0.5)[0]
        assert found[9] == 0.5
        assert found[0] == pytest.approx(-0.1 / (statistics.stdev([0.0] * 9 + [1.0]) + 1e-4))

    def test_skipped_rows_have_no_share_in_the_baseline(self):
        assert advantages([[1.0, NAN, 3.0, NAN]], scale="none")[0] == [-1.0, 0.0, 1.0, 0.0]
        rewards = torch.tensor([1.0, 50.0, 3.0, 9.0])
        mask = torch.tensor([True, False, True, False])
        config = AdvantageConfig(num_generations=4, scale="none")
        assert group_advantages(rewards, config, mask).tolist() == [-1.0, 0.0, 1.0, 0.0]

    def test_constant_groups(self):
        rewards = torch.tensor([1.0, 1.0, 1.0, 2.0, NAN, 3.0, NAN, NAN])
        assert constant_groups(rewards, 2).tolist() == [True, False, True, True]
        mask = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1])
        assert constant_groups(rewards, 2, mask).tolist() == [True, True, True, True]

    def test_rewards_that_no_float_holds_exactly_are_still_a_constant_group(self):
        config = AdvantageConfig(num_generations=3)
        assert group_advantages(torch.full((3,), 0.1), config).tolist() == [0.0, 0.0, 0.0]

    def test_half_precision_and_integers_become_float32(self):
        for dtype in (torch.bfloat16, torch.float16, torch.int64):
            rewards = torch.tensor([2, 0, 2, 0], dtype=dtype)
            found = group_advantages(rewards, AdvantageConfig(num_generations=4, scale="none"))
            assert found.dtype == torch.float32
            assert found.tolist() == [1.0, -1.0, 1.0, -1.0]


@settings(max_examples=200, deadline=None)
@given(groups=groups_of_rewards, options=configs, floor=st.sampled_from([0.0, 0.5]), clip=st.sampled_from([None, 0.7]))
def test_equal_to_plain_loops(groups, options, floor, clip):
    if options["scale"] == "none":
        floor = 0.0
    found = advantages(groups, floor=floor, clip=clip, **options)
    for row, expected in zip(found, reference(groups, floor=floor, clip=clip, **options), strict=True):
        assert row == pytest.approx(expected, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(groups=groups_of_rewards, options=configs, shift=st.integers(-16, 16))
def test_adding_a_constant_changes_nothing(groups, options, shift):
    moved = [[value + shift for value in group] for group in groups]
    for row, expected in zip(advantages(moved, **options), advantages(groups, **options), strict=True):
        assert row == pytest.approx(expected, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(groups=groups_of_rewards, options=configs, shifts=st.lists(st.integers(-16, 16), min_size=4, max_size=4))
def test_groups_may_be_shifted_apart_unless_the_scale_is_that_of_the_batch(groups, options, shifts):
    if options["scale"] == "batch" and not options["ranks"]:
        options["scale"] = "std"
    moved = [[value + shift for value in group] for group, shift in zip(groups, shifts, strict=False)]
    for row, expected in zip(advantages(moved, **options), advantages(groups, **options), strict=True):
        assert row == pytest.approx(expected, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(groups=groups_of_rewards, options=configs, data=st.data())
def test_permuting_a_group_permutes_its_advantages(groups, options, data):
    order = data.draw(st.permutations(range(len(groups[0]))))
    moved = [[group[i] for i in order] for group in groups]
    for row, before in zip(advantages(moved, **options), advantages(groups, **options), strict=True):
        assert row == pytest.approx([before[i] for i in order], abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(value=st.floats(-1e6, 1e6), size=st.integers(2, 9), options=configs, skipped=st.integers(0, 9))
def test_a_constant_group_has_advantages_of_exactly_zero(value, size, options, skipped):
    group = [NAN if i < min(skipped, size) else value for i in range(size)]
    assert advantages([group], **options) == [[0.0] * size]


@settings(max_examples=100, deadline=None)
@given(groups=groups_of_rewards, options=configs)
def test_a_better_reward_never_has_a_smaller_advantage(groups, options):
    for group, row in zip(groups, advantages(groups, **options), strict=True):
        pairs = [pair for pair in zip(group, row, strict=True) if not math.isnan(pair[0])]
        for (low, low_advantage), (high, high_advantage) in itertools.permutations(pairs, 2):
            assert low >= high or low_advantage <= high_advantage + 1e-9


@settings(max_examples=60, deadline=None)
@given(groups=groups_of_rewards, scale=st.sampled_from(["none"]))
def test_leave_one_out_is_the_mean_baseline_times_n_over_n_minus_one(groups, scale):
    first = advantages(groups, baseline="leave_one_out", scale=scale)
    second = advantages(groups, baseline="mean", scale=scale)
    for group, row, other in zip(groups, first, second, strict=True):
        count = sum(not math.isnan(value) for value in group)
        assert row == pytest.approx([value * count / max(count - 1, 1) for value in other], abs=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_generations": 1}, "num_generations must be at least 2"),
        ({"baseline": "mode"}, "advantage baseline must be one of mean, leave_one_out, median, not 'mode'"),
        ({"scale": "group"}, "advantage scale must be one of std, mad, none, batch, not 'group'"),
        ({"ddof": 2}, "advantage ddof must be one of 0, 1, not 2"),
        ({"eps": 0.0}, "advantage eps must be above 0"),
        ({"eps": NAN}, "advantage eps must be above 0"),
        ({"floor": -1.0}, "advantage floor must be at least 0"),
        ({"clip": 0.0}, "advantage clip must be above 0"),
        ({"floor": 0.1, "scale": "none"}, "does nothing with advantage scale 'none'"),
    ],
)
def test_refused(options, words):
    with pytest.raises(ValueError, match=words):
        AdvantageConfig(**{"num_generations": 4} | options)


@pytest.mark.parametrize("rewards", [torch.zeros(5), torch.zeros(2, 4)])
def test_rewards_that_do_not_divide_into_groups_are_refused(rewards):
    with pytest.raises(ValueError, match=r"N a multiple of num_generations \(4\)"):
        group_advantages(rewards, AdvantageConfig(num_generations=4))


def test_infinite_rewards_are_refused():
    with pytest.raises(ValueError, match="one of them is infinite"):
        group_advantages(torch.tensor([1.0, math.inf]), AdvantageConfig(num_generations=2))

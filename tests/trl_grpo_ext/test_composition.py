"""`CompositeReward`: weights, schedules, gates, normalisation, missing scores, and what each call shows."""

import math
import pickle
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_grpo_ext import check_reward_columns
from trl_grpo_ext.rewards.composition import (
    CompositeReward,
    Constant,
    Cosine,
    Gate,
    Linear,
    Step,
    find_groups,
    make_schedule,
    normalise,
    rank,
    standardise,
)
from trl_grpo_ext.rewards.label_free import CollapseGuard, RankedReward

SCORES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)


def length(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def marked(completions, **kwargs):
    return [float("!" in completion) for completion in completions]


def only_digits(completions, **kwargs):
    return [float(completion) if completion.isdigit() else None for completion in completions]


async def later(completions, **kwargs):
    return length(completions)


def at(step, max_steps=100):
    return SimpleNamespace(global_step=step, max_steps=max_steps)


def test_weighted_sum():
    reward = CompositeReward([length, marked], weights={"marked": -2.0})
    assert reward(completions=["abc", "ab!"]) == [3.0, 1.0]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Constant(0.5), [0.5, 0.5, 0.5, 0.5, 0.5]),
        (Linear(1, 0), [1, 0.75, 0.5, 0.25, 0]),
        (Linear(2, 4, begin=0.25, until=0.75), [2, 2, 3, 4, 4]),
        (Cosine(1, 0), [1, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 - math.cos(math.pi / 4)) / 2, 0]),
        (Step(((0, 1.0), (0.5, 0.2))), [1, 1, 0.2, 0.2, 0.2]),
    ],
    ids=lambda value: getattr(value, "__class__", type(value)).__name__,
)
def test_schedules_follow_the_trainer_state(schedule, values):
    reward = CompositeReward([length], weights=3.0, schedules={"length": schedule})
    for step, value in zip((0, 25, 50, 75, 100), values, strict=True):
        assert reward(completions=["ab"], trainer_state=at(step)) == pytest.approx([6 * value])
        assert reward.last_metrics["composite/length/weight"] == pytest.approx(3 * value)


def test_without_training_the_schedule_stands_at_its_start():
    reward = CompositeReward([length], schedules={"length": Linear(5, 0)})
    assert reward(completions=["a"]) == reward(completions=["a"], trainer_state=at(3, max_steps=0)) == [5.0]


def test_gate_closes_below_its_minimum_and_on_none():
    gate = Gate("only_digits", ("length",), minimum=5, otherwise=-1.0)
    reward = CompositeReward([length, only_digits], {"only_digits": 0.0}, gates=[gate], missing="omit")
    assert reward(completions=["9", "4", "x"]) == [1.0, -1.0, -1.0]
    assert reward.last_metrics["composite/length/gated"] == pytest.approx(2 / 3)


def test_gate_acts_before_normalisation():
    reward = CompositeReward(
        [length, marked], {"marked": 0.0}, gates=[Gate("marked", ("length",))], normalisation={"length": "rank"}
    )
    assert reward(completions=["aaaa", "a!", "aa!"], prompts=["p"] * 3) == [-1.0, 0.0, 1.0]


def test_normalisation_is_per_group_and_per_component():
    prompts = ["p", "p", "q", "q"]
    reward = CompositeReward([length, marked], normalisation={"length": "rank"})
    assert reward(completions=["a", "aaa", "aaaaaaa!", "a"], prompts=prompts) == [-1, 1, 2, -1]
    assert reward.last_components["length"] == [1, 3, 8, 1]
    total = CompositeReward([length, marked], total="standardise")
    half = math.sqrt(0.5)
    assert total(completions=["a", "aaa", "b", "aa!"], prompts=prompts) == pytest.approx([-half, half, -half, half])


@pytest.mark.parametrize(
    ("policy", "expected"), [("skip", [3.0, None]), ("omit", [3.0, 1.0]), (10.0, [3.0, 11.0]), (0, [3.0, 1.0])]
)
def test_missing_scores(policy, expected):
    reward = CompositeReward([only_digits, length], missing={"only_digits": policy})
    assert reward(completions=["2", "x"]) == expected
    assert reward.last_metrics["composite/only_digits/skipped"] == 0.5


def test_row_without_any_score_is_skipped_under_every_policy():
    for policy in ("skip", "omit", 1.0):
        assert CompositeReward([only_digits], missing=policy)(completions=["x", "1"]) == [None, 1.0]


def test_nan_is_none():
    reward = CompositeReward({"n": lambda completions, **kwargs: [math.nan, 2.0]})
    assert reward(completions=["a", "b"]) == [None, 2.0]


def test_metrics_are_logged_as_they_were_at_the_step():
    logged = {}
    reward = CompositeReward(
        [length, marked], {"length": 2.0}, {"length": Linear(1, 0)}, [Gate("marked", ("length",))]
    )
    reward(completions=["abc", "a!"], trainer_state=at(50), log_metric=logged.__setitem__)
    assert logged == reward.last_metrics
    assert {name.removeprefix("composite/length/"): value for name, value in logged.items() if "length" in name} == {
        "mean": 2.5,
        "term": 1.0,
        "weight": 1.0,
        "skipped": 0.0,
        "gated": 0.5,
    }
    assert reward.last_components == {"length": [3, 2], "marked": [0, 1]}


def test_pseudo_signal_is_seen_through_standardisation():
    reward = CompositeReward([length, marked], weights={"length": 3.0}, normalisation="standardise")
    assert math.isnan(reward.pseudo_signal)
    reward(completions=["aa", "a!"], prompts=["p", "p"])
    assert reward.pseudo_signal == pytest.approx((3 * 2 + 1 * 0.5) / 4)


def test_pickles_and_keeps_its_name():
    reward = CompositeReward([length, marked], schedules={"length": Cosine(1, 0)}, total="rank", name="mine")
    copy = pickle.loads(pickle.dumps(reward))
    call = {"completions": ["a", "b!"], "prompts": ["p", "p"], "trainer_state": at(30)}
    assert copy(**call) == reward(**call)
    assert copy.__name__ == "mine"


@given(SCORES)
def test_rank_is_centred_bounded_and_ordered(scores):
    ranks = rank(scores)
    assert sum(ranks) == pytest.approx(0, abs=1e-9)
    assert all(-1 <= value <= 1 for value in ranks)
    for a, b in zip(scores, ranks, strict=True):
        assert all((a < c) <= (b < d) and (a == c) <= (b == d) for c, d in zip(scores, ranks, strict=True))


@given(SCORES)
def test_standardise_has_mean_0_and_deviation_1(scores):
    values = standardise(scores)
    assert sum(values) == pytest.approx(0, abs=1e-3)
    if max(scores) - min(scores) > 1e-3:
        assert sum(value**2 for value in values) == pytest.approx(len(scores) - 1, rel=1e-3)


@given(st.lists(st.none() | st.integers(-5, 5).map(float), min_size=6, max_size=6), st.sampled_from(["rank", "none"]))
def test_none_has_no_share_in_its_group(scores, kind):
    values = normalise(scores, [range(6)], kind)
    known = [score for score in scores if score is not None]
    assert [value is None for value in values] == [score is None for score in scores]
    assert [value for value in values if value is not None] == (rank(known) if kind == "rank" and known else known)


@given(st.integers(1, 4), st.integers(1, 5))
def test_groups_cover_every_row_once(count, size):
    prompts = [[{"role": "user", "content": str(i)}] for i in range(count) for _ in range(size)]
    groups = find_groups(prompts)
    assert [row for group in groups for row in group] == list(range(count * size))
    assert len(groups) == count
    assert find_groups(["same"] * count * size, group_size=size) == groups


def test_groups_of_unequal_size_are_refused():
    with pytest.raises(ValueError, match=r"must have one size, but have \[2, 1\]"):
        find_groups(["a", "a", "b"])
    with pytest.raises(ValueError, match=r"Rows 2 to 3 .* group_size=2"):
        find_groups(["a", "a", "b", "c"], 2)
    with pytest.raises(ValueError, match=r"group_size must divide the rows of a reward call \(3\)"):
        find_groups(["a"] * 3, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rewards": []}, "at least one reward"),
        ({"rewards": [length, length]}, "name of its own"),
        ({"weights": {"lenght": 1.0}}, "weights: 'lenght' is not a component, did you mean 'length'"),
        ({"weights": math.nan}, "must be a finite number, not nan"),
        ({"normalisation": "ranked"}, "not 'ranked', did you mean 'rank'"),
        ({"total": "zscore"}, "normalisation of 'total'"),
        ({"missing": "drop"}, "'skip', 'omit' or a finite number, not 'drop'"),
        ({"missing": None}, "'skip', 'omit' or a finite number, not None"),
        ({"group_size": 0}, "group_size must be None or a whole number of at least 1, not 0"),
        ({"gates": [Gate("format", ("length",))]}, "gates: 'format' is not a component"),
        ({"gates": [Gate("length", ("length",))]}, "and not itself"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CompositeReward(**{"rewards": [length, marked], **options})


def test_async_components_are_awaited():
    assert CompositeReward([later, marked])(completions=["abc", "a!"]) == [3.0, 3.0]


def test_an_error_of_a_component_is_that_of_the_composite():
    def broken(completions, **kwargs):
        raise KeyError("key")

    with pytest.raises(KeyError) as caught:
        CompositeReward([length, broken])(completions=["a"])
    assert caught.value.args == ("key",)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([1.0], ValueError, "'bad' returned 1 rewards for 2 completions"),
        (["1", 1], TypeError, "'bad' must return finite numbers.* row 0 the result is the string '1'"),
        ([1, [2]], TypeError, "row 1 the result is a list"),
        ("11", ValueError, "'bad' returned str, not a list of 2"),
        ({"a": 1, "b": 2}, ValueError, "'bad' returned dict, not a list of 2"),
        (None, ValueError, "'bad' returned NoneType"),
    ],
)
def test_bad_values_of_a_component(values, error, message):
    reward = CompositeReward({"bad": lambda completions, **kwargs: values})
    with pytest.raises(error, match=message):
        reward(completions=["x", "y"])


def test_infinite_value_of_a_component():
    with pytest.raises(ValueError, match=r"finite numbers.* row 0 the result is inf"):
        CompositeReward({"bad": lambda completions, **kwargs: [math.inf]})(completions=["x"])


def test_a_schedule_that_gives_no_number_is_refused():
    with pytest.raises(ValueError, match="schedules: that of 'length' gave nan at progress"):
        CompositeReward([length], schedules={"length": lambda progress: math.nan})(completions=["a"])


def test_columns_of_the_components_are_checked_before_training():
    def needs_gold(completions, gold, **kwargs):
        return [1.0] * len(completions)

    def without_rest(prompts, completions, completion_ids, trainer_state=None, log_extra=None, log_metric=None):
        return [1.0] * len(completions)

    reward = RankedReward(CompositeReward([length, needs_gold]))
    check_reward_columns(reward, ["prompt", "gold"])
    with pytest.raises(ValueError, match="'ranked_composite' needs the argument 'gold'"):
        check_reward_columns(reward, ["prompt"])
    check_reward_columns(CompositeReward([without_rest]), ["prompt"])
    with pytest.raises(ValueError, match=r"'composite' does not accept gold.*add \*\*kwargs"):
        check_reward_columns(CompositeReward([length, without_rest]), ["prompt", "gold"])
    guard = CollapseGuard(length, needs_gold)
    with pytest.raises(ValueError, match="needs the argument 'canary'"):
        check_reward_columns(guard, ["prompt", "gold"])
    with pytest.raises(ValueError, match="needs the argument 'gold'"):
        check_reward_columns(guard, ["prompt", "canary"])


def test_normalisation_needs_prompts():
    with pytest.raises(ValueError, match="needs prompts"):
        CompositeReward([length], total="rank")(completions=["a"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "linaer", "start": 1, "end": 0}, "not 'linaer', did you mean 'linear'"),
        ({"kind": "linear", "start": 1, "stop": 0}, "unknown option 'stop'"),
        ({"kind": "linear", "start": 1}, "missing 1 required"),
        ({"kind": "cosine", "start": 1, "end": 0, "begin": 0.5, "until": 0.5}, "0 <= begin < until <= 1"),
        ({"kind": "step", "milestones": [[0.5, 1]]}, "must begin at progress 0"),
        ({"kind": "step", "milestones": [[0, "a"]]}, "value must be a finite number, not 'a'"),
        ({"kind": "constant", "value": "1"}, "value must be a finite number, not '1'"),
        ("cosine", "must be one of .*, not 'cosine'"),
    ],
)
def test_bad_schedules_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(spec)

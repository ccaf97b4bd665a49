import json
import math
import warnings

import pytest

from trl_grpo_ext.experience import Episode, ExperienceConfig, ExperienceStats, Lesson, RolloutGroup, group_advantages

BAD_NUMBERS = [math.nan, math.inf, -math.inf, "1", None, [1]]


def test_id_is_a_hash_of_the_content_only():
    one, other = Episode("p", "r", 0.5, 1.0, {"a": 1}), Episode("p", "r", 0.1, 2.0)
    assert one.id == other.id
    assert len({one.id, Episode("p", "r ", 0.5).id, Lesson("p").id}) == 3


def test_where_prompt_ends_is_part_of_the_id():
    assert Episode("ab", "c", 1.0).id != Episode("a", "bc", 1.0).id


def test_age_and_staleness():
    episode = Episode("p", "r", 1.0, timestamp=1000.0)
    assert episode.age_seconds(now=1600.0) == 600.0
    assert not episode.is_stale(600, now=1600.0)
    assert episode.is_stale(599, now=1600.0)


def test_clock_going_backwards_makes_nothing_stale():
    assert Episode("p", "r", 1.0, timestamp=1000.0).age_seconds(now=10.0) == 0.0


@pytest.mark.parametrize("number", BAD_NUMBERS)
def test_numbers_that_are_none_are_refused(number):
    with pytest.raises(ValueError, match="advantage must be a finite number"):
        Episode("p", "r", number)


@pytest.mark.parametrize("arguments", [("", "r"), ("p", " \n")])
def test_empty_texts_are_refused(arguments):
    with pytest.raises(ValueError, match="is empty"):
        Episode(*arguments, 1.0)


def test_text_that_is_no_text_is_refused():
    with pytest.raises(TypeError, match="prompt must be a string, not list"):
        Episode([{"role": "user"}], "r", 1.0)


@pytest.mark.parametrize("metadata", [{1: "a"}, {"a": math.nan}, {"a": object()}, "a=b"])
def test_metadata_that_json_cannot_hold_are_refused(metadata):
    with pytest.raises(ValueError, match="metadata"):
        Lesson("l", metadata=metadata)


def test_half_a_surrogate_pair_becomes_a_question_mark():
    assert Episode("p\ud800", "r\udfff", 1.0, metadata={"a": "\ud800"}).prompt == "p?"


def test_advantages_are_rewards_minus_their_mean():
    assert group_advantages([2.0, 0.0, 2.0, 0.0]) == [1.0, -1.0, 1.0, -1.0]
    assert group_advantages([1.0, None, 0.0]) == [0.5, None, -0.5]
    assert group_advantages([None]) == [None]


@pytest.mark.parametrize("reward", [0.1, 0.3, 1e-9, 123456.7])
@pytest.mark.parametrize("size", [1, 3, 7, 8])
def test_equal_rewards_give_exactly_no_advantage(reward, size):
    assert group_advantages([reward] * size) == [0.0] * size


def test_rewards_at_the_mean_are_not_above_it_by_rounding():
    group = RolloutGroup("p", ["a", "b", "c"], [0.1, 0.2, 0.3])
    assert [episode.response for episode in group.episodes(0.0)] == ["c"]


def test_huge_rewards_are_refused_and_not_infinite():
    with pytest.raises(ValueError, match="too far apart"):
        group_advantages([1.7e308, -1.7e308, -1.7e308, -1.7e308])


@pytest.mark.parametrize(
    ("responses", "rewards", "message"),
    [
        ([], [], "at least one"),
        (["a", "b"], [1.0], "2 responses and 1 rewards"),
        (["a", "b"], [1.0, math.nan], "reward of rollout 1 must be a finite number, not nan"),
        (["a", "b"], [1.0, math.inf], "not inf"),
    ],
)
def test_bad_groups_are_refused(responses, rewards, message):
    with pytest.raises(ValueError, match=message):
        RolloutGroup("p", responses, rewards)


def test_group_of_several_prompts_is_refused():
    with pytest.raises(ValueError, match="these rollouts have 2"):
        RolloutGroup.from_pairs([("p", "a"), ("q", "b")], [1.0, 0.0])


def test_defaults_are_the_guides():
    config = ExperienceConfig()
    assert (config.group_size, config.max_library_size, config.max_experience_age) == (8, 10_000, 604_800)
    assert (config.min_advantage_threshold, config.sampling_temperature) == (0.0, 1.0)
    assert config.use_advantage_weighting is True


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("group_size", (4, 32), (3, 33, 8.0, True, "8")),
        ("max_library_size", (1000, 1_000_000), (999, 1_000_001)),
        ("max_experience_age", (3600, 2_592_000), (3599, 2_592_001, math.nan)),
        ("min_advantage_threshold", (0.0, 1.0), (-1.01, 1.01, math.nan)),
        ("sampling_temperature", (0.1, 2.0), (0.0, 2.1, math.inf)),
        ("max_per_prompt", (1, None), (0, 1.5)),
        ("prune_to", (0.5, 1.0), (0.4, 1.1)),
    ],
)
def test_ranges_are_the_guides(name, inside, outside):
    for value in inside:
        assert getattr(ExperienceConfig(**{name: value}), name) == value
    for value in outside:
        with pytest.raises(ValueError, match=name):
            ExperienceConfig(**{name: value})


def test_negative_threshold_warns():
    with pytest.warns(UserWarning, match="worse than their group's mean"):
        ExperienceConfig(min_advantage_threshold=-0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ExperienceConfig(min_advantage_threshold=0.0)


def test_weighting_has_to_be_a_boolean():
    with pytest.raises(ValueError, match="use_advantage_weighting"):
        ExperienceConfig(use_advantage_weighting="false")


def test_fingerprint_tells_settings_apart_but_not_their_spelling():
    assert (
        ExperienceConfig(max_experience_age=3600.0).fingerprint
        == ExperienceConfig(max_experience_age=3600).fingerprint
    )
    assert ExperienceConfig().fingerprint != ExperienceConfig(prune_to=0.9).fingerprint


def test_config_survives_json():
    config = ExperienceConfig(max_per_prompt=3, sampling_temperature=0.5)
    assert ExperienceConfig.from_mapping(json.loads(config.to_json())) == config
    with pytest.raises(ValueError, match="unknown setting 'sise'"):
        ExperienceConfig.from_mapping({"sise": 1})


def test_summary_is_the_guides_text():
    expected = """GRPO Stats:
Total rollouts: 8000
Stored: 3200 (40.0% of rollouts)
Pruned: 500
Current library: 2700 experiences
Advantage: avg=0.234, max=2.145, min=0.001
Storage efficiency: 40.0%
Retention rate: 84.4%"""
    assert ExperienceStats(8000, 3200, 500, 2700, 0.234, 2.145, 0.001).summary() == expected


def test_rates_of_an_empty_library_are_zero():
    stats = ExperienceStats(0, 0, 0, 0, 0.0, 0.0, 0.0)
    assert (stats.storage_efficiency(), stats.retention_rate()) == (0.0, 0.0)

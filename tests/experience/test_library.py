import math
import warnings
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.experience.conftest import rollouts
from tests.experience.test_sampler import assert_law, softmax
from trl_grpo_ext.experience import (
    ConfigChangedError,
    Episode,
    ExperienceConfig,
    ExperienceError,
    ExperienceLibrary,
    Lesson,
    RolloutGroup,
)

QUESTION = "What is 2 + 2?"
FOUR = rollouts(QUESTION, "4", "5", "four", "22")


def episodes(*advantages, timestamp=None, **metadata):
    others = {} if timestamp is None else {"timestamp": timestamp}
    return [Episode(f"p{place}", "r", value, metadata=metadata, **others) for place, value in enumerate(advantages)]


def test_group_keeps_what_beats_its_mean(library):
    names = library.add_rollout_group(FOUR, [1.0, 0.0, 0.5, 0.0])
    held = {item.id: item.record for item in library.records()}
    assert list(held) == names
    assert [(item.response, item.advantage, item.reward) for item in held.values()] == [
        ("4", 0.625, 1.0),
        ("four", 0.125, 0.5),
    ]
    stats = library.stats()
    assert (stats.total_rollouts, stats.total_stored, stats.total_pruned) == (4, 2, 0)
    assert (stats.current_library_size, stats.avg_advantage) == (2, 0.375)
    assert (stats.max_advantage, stats.min_advantage) == (0.625, 0.125)


def test_threshold_is_strict(where):
    with ExperienceLibrary(config=ExperienceConfig(min_advantage_threshold=0.125), **where) as library:
        library.add_rollout_group(FOUR, [1.0, 0.0, 0.5, 0.0])
        assert [item.response for item in library] == ["4"]


def test_same_group_again_stores_and_counts_nothing(library):
    library.add_rollout_group(FOUR, [1.0, 0.0, 0.5, 0.0])
    version, stats = library.version, library.stats()
    assert library.add_rollout_group(FOUR, [1, 0, 0.5, 0]) == []
    assert (library.version, library.stats()) == (version, stats)


def test_groups_with_names_count_once_per_name(library):
    for uid in ("a", "b", "a"):
        library.add_rollout_group(FOUR, [1.0, 0.0, 0.0, 0.0], uid=uid)
    assert library.stats().total_rollouts == 8
    assert library.library_size() == 1


def test_pair_seen_again_takes_the_newer_advantage(library):
    library.add_rollout_group(FOUR, [1.0, 0.0, 0.0, 0.0], timestamp=2e9, metadata={"a": 1})
    library.add_rollout_group(FOUR, [1.0, 0.0, 1.0, 0.0], timestamp=2e9 + 5, metadata={"b": 2})
    first = next(iter(library))
    assert (first.advantage, first.timestamp, first.metadata) == (0.5, 2e9 + 5, {"a": 1, "b": 2})
    library.add_rollout_group(FOUR, [1.0, 0.9, 0.9, 0.9], timestamp=2e9 + 1)
    assert next(iter(library)).advantage == 0.5


def test_failed_rewards_have_no_share_in_the_mean(library):
    library.add_rollout_group(FOUR, [1.0, None, 0.0, None])
    assert [(item.response, item.advantage) for item in library] == [("4", 0.5)]
    assert library.stats().total_rollouts == 4


def test_empty_responses_count_but_are_not_stored(library):
    library.add_rollout_group(rollouts(QUESTION, "", " ", "a", "b"), [1.0, 1.0, 1.0, 0.0])
    assert [item.response for item in library] == ["a"]


def test_groups_of_any_size_are_taken_and_small_ones_warn_once(library):
    with pytest.warns(UserWarning, match="fewer than 4"):
        library.add_rollout_group(FOUR[:1], [1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        library.add_rollout_group(FOUR[:2], [1.0, 0.0])
        library.add_rollout_group(rollouts("many", *map(str, range(100))), list(range(100)))
    assert library.library_size() == 51


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_reward_stores_nothing_of_the_step(library, bad):
    good = RolloutGroup("p", list("abcd"), [1, 0, 0, 0])
    with pytest.raises(ValueError, match="finite"):
        library.add_rollout_groups([good, RolloutGroup("q", list("abcd"), [bad, 0, 0, 0])])
    assert len(library) == 0


def test_step_is_one_version_and_a_failing_one_is_none(library):
    version = library.version
    with library.transaction("step", step=7):
        library.add_rollout_group(FOUR, [1.0, 0.0, 0.0, 0.0])
        library.add(Lesson("Check twice."))
    assert library.version == version + 1
    assert (library.history(1)[0].cause, library.history(1)[0].step) == ("step", 7)
    with pytest.raises(RuntimeError, match="boom"), library.transaction("step", step=8):
        library.add(Lesson("Never stored."))
        raise RuntimeError("boom")
    assert library.version == version + 1
    assert [lesson.text for lesson in library if isinstance(lesson, Lesson)] == ["Check twice."]


def test_part_that_failed_inside_a_step_takes_the_step_with_it(library):
    with pytest.raises(ExperienceError, match="a part of this transaction failed"), library.transaction("step"):
        library.add(Lesson("a"))
        with pytest.raises(KeyError):
            library.retire("no such id")
    assert len(library) == 0


def test_draws_follow_the_law_also_after_changes(library):
    names = library.add(*episodes(0.0, 0.5, 1.0, -1.0, 2.0))
    library.sample_experience()
    library.retire(names[4])
    library.add(Episode("p0", "r", 0.7))
    law = dict(zip(["p0", "p1", "p2", "p3"], softmax([0.7, 0.5, 1.0, -1.0], 1.0), strict=True))
    assert_law(Counter(library.sample_experience().prompt for _ in range(4000)), law)


def test_filter_and_other_temperature_have_their_law(library):
    library.add(*episodes(0.0, 1.0, 2.0, domain="web"), Episode("other", "r", 9.0, metadata={"domain": "math"}))
    law = dict(zip(["p0", "p1", "p2"], softmax([0.0, 1.0, 2.0], 2.0), strict=True))
    drawn = (library.sample_experience(where={"domain": "web"}, temperature=2.0).prompt for _ in range(3000))
    assert_law(Counter(drawn), law)
    assert {library.sample_experience(temperature=0.0).prompt for _ in range(20)} == {"other"}
    both = library.sample_multiple(9, where={"domain": ["web", "math"]})
    assert sorted(item.prompt for item in both) == ["other", "p0", "p1", "p2"]


def test_without_weighting_draws_are_uniform(where):
    with ExperienceLibrary(config=ExperienceConfig(use_advantage_weighting=False), seed=0, **where) as library:
        library.add(*episodes(0.0, 5.0, 10.0))
        counts = Counter(library.sample_experience().prompt for _ in range(3000))
        assert_law(counts, {"p0": 1 / 3, "p1": 1 / 3, "p2": 1 / 3})


def test_same_seed_draws_the_same(where):
    drawn = []
    for _ in range(2):
        with ExperienceLibrary(seed=5, **where) as library:
            if not len(library):
                library.add(*episodes(*range(20)))
            drawn.append([library.sample_experience().prompt for _ in range(10)])
    assert drawn[0] == drawn[1]


def test_empty_library_has_nothing_and_breaks_nothing(library):
    assert library.sample_experience() is None
    assert library.sample_multiple(3) == []
    assert library.retrieve_episodes("p") == library.retrieve_lessons("p") == []
    assert library.get_experiences_for_prompt("p") == []
    assert library.stats().summary().startswith("GRPO Stats:")
    assert library
    with pytest.raises(ValueError, match="at least 0, not -1"):
        library.sample_multiple(-1)


def test_pruning_by_size_keeps_the_best_and_leaves_room(where):
    config = ExperienceConfig(max_library_size=1000, prune_to=0.9)
    with ExperienceLibrary(config=config, **where) as library:
        library.add(*episodes(*range(1000)))
        assert library.is_at_capacity()
        library.add(Episode("one more", "r", 5000.0))
        assert library.library_size() == 900
        assert min(item.advantage for item in library) == 101.0
        stats = library.stats()
        assert (stats.total_stored, stats.total_pruned) == (1001, 101)
        assert stats.retention_rate() == pytest.approx(900 / 1001)
        drawn = {item.prompt for item in library.sample_multiple(1000)}
        assert drawn == {item.prompt for item in library}


def test_pruning_by_age(where):
    with ExperienceLibrary(config=ExperienceConfig(max_experience_age=3600), **where) as library:
        library.add(*episodes(1.0, 2.0, timestamp=10_000), now=10_000)
        library.add(Episode("new", "r", 1.0, timestamp=13_600), now=13_600)
        assert library.library_size() == 3
        assert library.prune(now=13_601) == 2
        assert [item.prompt for item in library] == ["new"]
        assert library.prune(now=5) == 0


def test_lessons_are_not_pruned(library):
    library.add(Lesson("old", timestamp=0.0))
    library.prune(max_size=0)
    assert library.lesson_count() == 1


def test_group_pruned_by_age_can_be_stored_again(where):
    with ExperienceLibrary(config=ExperienceConfig(max_experience_age=3600), **where) as library:
        library.add_rollout_groups([RolloutGroup("p", list("abcd"), [1, 0, 0, 0], timestamp=10_000)], now=10_000)
        library.prune(now=20_000)
        assert library.library_size() == 0
        library.add_rollout_groups([RolloutGroup("p", list("abcd"), [1, 0, 0, 0], timestamp=20_000)], now=20_000)
        assert library.library_size() == 1


def test_quotas_of_prompt_and_domain(where):
    config = ExperienceConfig(max_per_prompt=2, max_per_domain=4, prune_to=1.0)
    with ExperienceLibrary(config=config, **where) as library:
        for prompt in "abc":
            library.add_rollout_group(rollouts(prompt, *"wxyz"), [4.0, 3.0, 2.0, -1.0], metadata={"domain": "web"})
        library.add_rollout_group(rollouts("d", *"wxyz"), [4.0, 3.0, 2.0, -1.0], metadata={"domain": "math"})
        held = Counter(item.prompt for item in library)
        assert held == {"a": 1, "b": 1, "c": 2, "d": 2} or sum(held[p] for p in "abc") == 4
        assert max(held.values()) == 2
        assert held["d"] == 2
        assert {item.response for item in library} <= {"w", "x"}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=60), st.integers(0, 60))
def test_pruning_to_a_size_retires_the_worst_oldest_first(advantages, size):
    with ExperienceLibrary() as library:
        library.add(*episodes(*advantages))
        library.prune(max_size=size)
        order = sorted(range(len(advantages)), key=lambda place: (advantages[place], place))
        expected = {f"p{place}" for place in order[max(0, len(order) - size) :]}
        assert {item.prompt for item in library} == expected


def test_iteration_survives_pruning_and_adding(library):
    library.add(*episodes(*range(1200)))
    seen = []
    for item in library:
        seen.append(item.prompt)
        if len(seen) == 10:
            library.prune(max_size=100)
            library.add(Episode("late", "r", 2000.0))
    assert len(seen) == len(set(seen))
    assert "late" in seen
    assert {item.prompt for item in library} <= set(seen)


def test_tags_and_filters(library):
    names = library.add(*episodes(1.0, 2.0, 3.0, domain="web"))
    library.tag(names[:1], domain="math", level=2, names=["a"])
    assert [item.id for item in library.records(where={"domain": "math", "level": 2})] == names[:1]
    assert [item.id for item in library.records(where={"domain": ["math", "web"]})] == names
    assert list(library.records(where={"level": "2"})) == []
    library.tag(names[:1], level=None)
    assert list(library.records(where={"level": 2})) == []
    with pytest.raises(KeyError, match="holds no record"):
        library.tag(["nothing"], a=1)
    with pytest.raises(ValueError, match="empty list"):
        list(library.records(where={"domain": []}))


def test_lessons_are_deduplicated_reworded_and_keep_their_id(library):
    (name,) = library.add(Lesson("Convert first."))
    assert library.add(Lesson("Convert first.")) == [name]
    library.reword(name, "Convert units first.")
    assert library.get(name).record.text == "Convert units first."
    assert library.add(Lesson("Convert units first.")) == [name]
    (other,) = library.add(Lesson("Convert first."))[:1]
    assert other == name
    assert library.lesson_count() == 1


def test_rewording_an_episode_or_into_another_lesson_is_refused(library):
    episode, one, two = library.add(*episodes(1.0), Lesson("a"), Lesson("b"))
    with pytest.raises(ExperienceError, match="is an episode"):
        library.reword(episode, "x")
    with pytest.raises(ExperienceError, match="has this text already"):
        library.reword(one, "b")
    assert library.get(two).record.text == "b"


def test_usage_is_a_posterior_mean_and_bumps_the_version(library):
    (name,) = library.add(Lesson("a"))
    version = library.version
    library.record_usage([(name, 1.0), (name, 0.5), ("retired meanwhile", 1.0)], step=3)
    assert library.version == version + 1
    assert (library.get(name).uses, library.get(name).gain) == (2, 1.5)
    assert library.retrieve_lessons()[0].usefulness == pytest.approx(1.5 / 10)
    with pytest.raises(ValueError, match="finite"):
        library.record_usage([(name, math.nan)])


def test_coverage_puts_prompts_in_need_first(library):
    library.add_rollout_group(rollouts("full", *"abcdef"), [1, 1, 1, 1, 1, 0])
    library.add_rollout_group(rollouts("wide", *"abcdef"), [9, 9, 9, 9, 9, 0])
    library.add_rollout_group(rollouts("dead", *"abcd"), [0, 0, 0, 0])
    library.add_rollout_group(rollouts("few", *"abcd"), [1, 0, 0, 0])
    rows = library.coverage(minimum=5)
    assert [row.prompt for row in rows] == ["dead", "few", "wide", "full"]
    assert (rows[0].episodes, rows[0].rollouts, rows[0].mean_reward, rows[0].spread) == (0, 4, 0.0, 0.0)
    assert rows[2].mean_reward == pytest.approx(7.5)
    assert len(library.coverage(limit=1)) == 1


def test_experiences_of_a_prompt_are_exact_and_the_best_first(library):
    library.add(
        Episode("Read file", "a", 0.1), Episode("Read file", "b", 0.9), Episode("Read file and sort", "c", 1.0)
    )
    assert [item.response for item in library.get_experiences_for_prompt("Read file")] == ["b", "a"]
    assert [item.response for item in library.get_experiences_for_prompt("Read file", similar=3)] == ["b", "a", "c"]


def test_configuration_is_the_files(where):
    if not where:
        pytest.skip("a library in memory is not opened twice")
    with ExperienceLibrary(config=ExperienceConfig(prune_to=0.9), **where):
        pass
    with ExperienceLibrary(**where) as library:
        assert library.config.prune_to == 0.9
    with pytest.raises(ConfigChangedError, match=r"prune_to: 0.9 -> 0.95"):
        ExperienceLibrary(config=ExperienceConfig(), **where)
    with ExperienceLibrary(config=ExperienceConfig(), reconfigure=True, **where) as library:
        assert library.history(1)[0].cause == "configure"

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.experience import Episode, ExperienceConfig, ExperienceError, ExperienceLibrary, Lesson, RolloutGroup


def contents(library):
    return {item.id: item for item in library.records()}


def step(library, action, number):
    """One random change of a library of at most 12 contents."""
    held = [item.id for item in library.records()]
    name = held[number % len(held)] if held else None
    if action == "group":
        group = RolloutGroup(
            f"prompt {number % 4}", [f"r{i}" for i in range(4)], [number % 3, 1, 0, 0], uid=str(number)
        )
        library.add_rollout_groups([group])
    elif action == "lesson":
        library.add(Lesson(f"lesson {number % 5}", timestamp=2e9))
    elif action == "clear":
        library.clear()
    elif name is None:
        return
    elif action == "tag":
        library.tag([name], key=number)
    elif action == "retire":
        library.retire(name)
    elif action == "use":
        library.record_usage([(name, number / 7)])
    else:
        library.prune(max_size=3)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["group", "group", "lesson", "tag", "retire", "use", "prune", "clear"]), st.integers(0, 40)
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(STEPS, st.integers(0, 12))
def test_rollback_restores_any_version_and_diff_is_empty_then(steps, back):
    with ExperienceLibrary() as library:
        library.add(Lesson("first", timestamp=2e9))
        states = {library.version: (contents(library), library.stats(), library.lesson_count())}
        for action, number in steps:
            step(library, action, number)
            states[library.version] = (contents(library), library.stats(), library.lesson_count())
        version = sorted(states)[back % len(states)]
        before = library.version
        library.rollback(version)
        assert (contents(library), library.stats(), library.lesson_count()) == states[version]
        difference = library.diff(version)
        assert (difference.added, difference.retired, difference.changed) == ([], [], {})
        library.rollback(before)
        assert contents(library) == states[before][0]
        drawn = {item.id for item in library.sample_multiple(1000)}
        assert drawn == {item.record.id for item in library.records("episode")}


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_diff_is_what_differs(steps):
    with ExperienceLibrary() as library:
        library.add(Lesson("first", timestamp=2e9))
        low, before = library.version, contents(library)
        for action, number in steps:
            step(library, action, number)
        after, difference = contents(library), library.diff(low)
        assert set(difference.added) == set(after) - set(before)
        assert set(difference.retired) == set(before) - set(after)
        assert set(difference.changed) == {name for name in set(before) & set(after) if before[name] != after[name]}
        back = library.diff(library.version, low)
        assert (set(back.added), set(back.retired)) == (set(difference.retired), set(difference.added))


@settings(max_examples=25, deadline=None)
@given(STEPS, st.integers(1, 4))
def test_copies_hold_the_same_version_and_retrieve_and_draw_the_same(steps, every):
    with ExperienceLibrary(seed=0) as library:
        library.add(Lesson("first", timestamp=2e9))
        copy = ExperienceLibrary.from_bytes(library.to_bytes())
        for place, (action, number) in enumerate(steps):
            step(library, action, number)
            if place % every == 0:
                copy.apply_changes(library.changes_since(copy.version))
        copy.apply_changes(library.changes_since(copy.version))
        assert (copy.version, copy.stats(), contents(copy)) == (library.version, library.stats(), contents(library))
        assert copy.retrieve_episodes("prompt 1") == library.retrieve_episodes("prompt 1")
        assert copy.retrieve_lessons() == library.retrieve_lessons()
        assert list(copy.records(where={"key": 3})) == list(library.records(where={"key": 3}))


def test_copies_follow_tags_and_their_filters(library):
    (name,) = library.add(Lesson("a", metadata={"domain": "web"}))
    copy = ExperienceLibrary.from_bytes(library.to_bytes())
    library.tag([name], domain="math")
    library.add(Lesson("b", metadata={"domain": "math"}))
    copy.apply_changes(library.changes_since(copy.version))
    assert [item.record.text for item in copy.records(where={"domain": "math"})] == ["a", "b"]
    assert list(copy.records(where={"domain": "web"})) == []


def test_copy_at_another_version_refuses_changes(library):
    copy = ExperienceLibrary.from_bytes(library.to_bytes())
    library.add(Lesson("a"))
    version = library.version
    library.add(Lesson("b"))
    with pytest.raises(ExperienceError, match=f"start from {version}"):
        copy.apply_changes(library.changes_since(version))
    assert len(copy) == 0


def test_copy_follows_a_library_in_a_file(library):
    library.add(Episode("p", "r", 1.0))
    copy = ExperienceLibrary.from_bytes(library.to_bytes())
    assert (copy.version, list(copy)) == (library.version, list(library))


def test_history_names_cause_and_step(library):
    library.add_rollout_groups([RolloutGroup("p", list("abcd"), [1, 0, 0, 0])], step=3)
    newest = library.history()[0]
    assert (newest.cause, newest.step, newest.added, newest.retired) == ("rollouts", 3, 1, 0)


@pytest.mark.parametrize("version", [-1, 99, 1.5, True])
def test_versions_that_are_none_are_refused(library, version):
    with pytest.raises(ValueError, match="versions are 0 to"):
        library.rollback(version)
    with pytest.raises(ValueError, match="versions are 0 to"):
        library.diff(version)


def test_rollback_lets_undone_groups_be_stored_again(library):
    version = library.version
    group = RolloutGroup("p", list("abcd"), [1, 0, 0, 0])
    library.add_rollout_groups([group])
    library.rollback(version)
    assert (len(library), library.stats().total_rollouts) == (0, 0)
    library.add_rollout_groups([group])
    assert (len(library), library.stats().total_rollouts) == (1, 4)


def test_pruned_records_come_back_by_rollback(where):
    with ExperienceLibrary(config=ExperienceConfig(max_experience_age=3600), **where) as library:
        library.add(Episode("p", "r", 1.0, timestamp=10_000), now=10_000)
        version = library.version
        library.prune(now=1e12)
        assert library.library_size() == 0
        library.rollback(version)
        assert library.library_size() == 1


def test_snapshot_beside_a_checkpoint_is_restored(library, tmp_path):
    library.add(Lesson("kept"), Episode("p", "r", 1.0))
    library.save_snapshot(tmp_path / "snapshot.db")
    version = library.version
    library.add(Lesson("after"), Episode("q", "r", 9.0))
    library.sample_experience()
    library.load_snapshot(tmp_path / "snapshot.db")
    assert library.version == version
    assert [getattr(item, "text", "episode") for item in library] == ["kept", "episode"]
    assert library.sample_experience().prompt == "p"
    assert len(library.history()) == version
    library.add(Lesson("again"))
    assert library.check_integrity() == []

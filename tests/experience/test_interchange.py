import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.experience import Episode, ExperienceLibrary, Lesson, RolloutGroup

TEXT = st.text(min_size=1, max_size=30).filter(lambda text: text.strip())
NUMBER = st.floats(-1e6, 1e6)
METADATA = st.dictionaries(
    st.text(max_size=5), st.none() | st.booleans() | st.integers() | NUMBER | st.text(), max_size=3
)
# In the future, so that nothing is stale.
TIME = st.floats(4e9, 5e9)
EPISODE = st.builds(Episode, TEXT, TEXT, NUMBER, TIME, METADATA, st.none() | NUMBER)
LESSON = st.builds(Lesson, TEXT, TIME, METADATA)


def unique(records):
    return list({record.id: record for record in records}.values())


@settings(max_examples=20, deadline=None)
@given(st.lists(EPISODE | LESSON, max_size=8))
def test_library_file_comes_back_as_it_was(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("round") / "library.json"
    with ExperienceLibrary() as library, ExperienceLibrary() as other:
        names = library.add(*unique(records))
        library.record_usage([(name, 0.25) for name in names[:2]])
        library.save_to_file(path)
        other.load_from_file(path)
        assert list(other.records()) == list(library.records())
        assert other.stats() == library.stats()


@settings(max_examples=20, deadline=None)
@given(st.lists(EPISODE, max_size=8), st.lists(LESSON, max_size=8))
def test_both_formats_come_back_as_they_were(tmp_path_factory, episodes, lessons):
    folder = tmp_path_factory.mktemp("round")
    with ExperienceLibrary() as library, ExperienceLibrary() as other:
        library.add(*unique(episodes), *unique(lessons))
        library.export_file(folder / "episodes.json", "episodes")
        library.export_file(folder / "lessons.json", "lessons")
        other.import_file(folder / "episodes.json")
        other.import_file(folder / "lessons.json")
        assert list(other.records("episode")) == list(library.records("episode"))
        texts = [lesson.text for lesson in library if isinstance(lesson, Lesson)]
        assert [lesson.text for lesson in other if isinstance(lesson, Lesson)] == texts


def test_episode_format_is_the_guides(library, tmp_path):
    library.add(Episode("p", "r", 0.5, 4e9, {"domain": "web"}))
    library.export_file(tmp_path / "e.json", "episodes")
    expected = [{"prompt": "p", "response": "r", "advantage": 0.5, "timestamp": 4e9, "metadata": {"domain": "web"}}]
    assert json.loads((tmp_path / "e.json").read_text()) == expected


def test_lesson_format_is_the_papers_and_sorted_by_number(library, tmp_path):
    path = tmp_path / "l.json"
    path.write_text(json.dumps({"G10": "tenth", "G2": "second", "G0": "first"}))
    library.import_file(path)
    library.export_file(tmp_path / "out.json", "lessons")
    assert json.loads((tmp_path / "out.json").read_text()) == {"G0": "first", "G1": "second", "G2": "tenth"}


def test_loading_replaces_and_can_be_rolled_back(library, tmp_path):
    library.add(Lesson("old"))
    version = library.version
    (tmp_path / "l.json").write_text('{"G0": "new"}')
    library.load_from_file(tmp_path / "l.json")
    assert [lesson.text for lesson in library] == ["new"]
    library.rollback(version)
    assert [lesson.text for lesson in library] == ["old"]


def test_retention_rate_survives_saving(library, tmp_path):
    library.add_rollout_groups([RolloutGroup("p", list("abcdefgh"), [3, 2, 1, 0, 0, 0, 0, 0])])
    library.prune(max_size=1)
    library.save_to_file(tmp_path / "x.json")
    before = library.stats()
    library.clear()
    assert library.stats().total_stored == 0
    library.load_from_file(tmp_path / "x.json")
    assert library.stats() == before
    assert library.stats().retention_rate() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", "is no JSON file"),
        ("[" * 100_000, "is no JSON file"),
        ("3", "neither a list of episodes"),
        ('[{"prompt": "p"}]', "record 0 has no 'response'"),
        ('[{"prompt": "p", "response": "r", "advantage": 1}, 5]', "record 1 must be an object"),
        ('[{"prompt": "p", "response": "r", "advantage": NaN}]', "record 0: Episode: advantage must be a finite"),
        ('[{"prompt": "p", "response": "r", "advantage": 1, "metadata": 3}]', "metadata must map"),
        ('[{"prompt": "p", "response": "r", "advantage": 1, "uses": "x"}]', "uses must be a finite number"),
        ('{"G0": "a", "note": "b"}', "'note' is no lesson number"),
        ('{"G0": ""}', "text is empty"),
        ('{"G0": 3}', "text must be a string"),
        ('{"experiences": {}}', "experiences must be a list"),
        ('{"experiences": [], "counters": {"stored": "x"}}', "counters must map"),
    ],
)
def test_bad_files_change_nothing(library, tmp_path, text, message):
    library.add(Lesson("kept"))
    version = library.version
    (tmp_path / "bad.json").write_text(text)
    for load in (library.import_file, library.load_from_file):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "bad.json")
    assert ([lesson.text for lesson in library], library.version) == (["kept"], version)


def test_file_that_cannot_be_written_leaves_the_old_one(library, tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    library.add(Lesson("a"))
    library.save_to_file(path)
    before = path.read_bytes()
    library.add(Lesson("b"))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        library.save_to_file(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.glob("*x.json*")] == ["x.json"]


def test_unknown_format_is_refused(library, tmp_path):
    with pytest.raises(ValueError, match="library, episodes, lessons"):
        library.export_file(tmp_path / "x", "yaml")


def test_merging_twice_adds_nothing(tmp_path):
    group = RolloutGroup("shared", list("abcd"), [1, 0, 0, 0], timestamp=4e9)
    with ExperienceLibrary(tmp_path / "one.db") as one, ExperienceLibrary(tmp_path / "two.db") as two:
        for library in (one, two):
            library.add_rollout_groups([group])
        (name,) = two.add(Lesson("only there"))
        two.record_usage([(name, 1.0)])
        two.add_rollout_groups([RolloutGroup("other", list("abcd"), [1, 0, 0, 0], timestamp=4e9)])
        assert one.merge(tmp_path / "two.db") == 2
        stats, held = one.stats(), list(one.records())
        assert (stats.total_rollouts, stats.total_stored, one.lesson_count()) == (8, 2, 1)
        assert one.get(name).uses == 1
        assert one.merge(tmp_path / "two.db") == 0
        assert (one.stats(), list(one.records())) == (stats, held)
        assert len(one.coverage()) == 2

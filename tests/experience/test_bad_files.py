"""Files that are no libraries, damaged ones, full disks, locks: a clear error, and nothing stored is lost."""

import shutil
import sqlite3

import pytest

from trl_grpo_ext.experience import (
    DiskFullError,
    Episode,
    ExperienceError,
    ExperienceLibrary,
    ForeignFileError,
    Lesson,
    LibraryDamagedError,
    LibraryLockedError,
    RolloutGroup,
)
from trl_grpo_ext.experience.schema import SCHEMA_VERSION, _create


@pytest.fixture
def path(tmp_path):
    return tmp_path / "experiences.db"


def test_text_file_is_left_alone(path):
    path.write_text("not a database, but something that somebody needs " * 10)
    before = path.read_bytes()
    with pytest.raises(ForeignFileError, match="no SQLite file"):
        ExperienceLibrary(path)
    assert path.read_bytes() == before


def test_database_of_another_program_is_left_alone(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE records (id)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ForeignFileError, match="another program"):
        ExperienceLibrary(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_newer_schema_is_refused(path):
    ExperienceLibrary(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(ForeignFileError, match="update trl-grpo-ext"):
        ExperienceLibrary(path)


def test_empty_file_becomes_a_library(path):
    path.touch()
    with ExperienceLibrary(path) as library:
        library.add(Lesson("a"))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated_file_is_named(path, share):
    with ExperienceLibrary(path) as library:
        library.add(*(Episode(f"p{number}", "r" * 500, 1.0) for number in range(300)))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(LibraryDamagedError, match="truncated"):
        ExperienceLibrary(path)


def test_stub_of_a_file_is_refused(path):
    path.write_bytes(b"SQLite format 3\0" + bytes(20))
    with pytest.raises(ForeignFileError):
        ExperienceLibrary(path)


def test_garbage_in_the_middle_is_named_when_it_is_read(path):
    with ExperienceLibrary(path) as library:
        library.add(*(Episode(f"p{number}", "r" * 500, 1.0) for number in range(300)))
    data = bytearray(path.read_bytes())
    data[4096 * 4 :] = bytes(len(data) - 4096 * 4)
    path.write_bytes(data)
    with pytest.raises(LibraryDamagedError, match="damaged"), ExperienceLibrary(path) as library:
        list(library)
        library.stats()
        library.add(*(Episode(f"q{number}", "r" * 500, 1.0) for number in range(300)))


def test_damaged_snapshot_leaves_the_library_as_it_is(path, tmp_path):
    with ExperienceLibrary(path) as library:
        library.add(*(Episode(f"p{number}", "r" * 500, 1.0) for number in range(300)))
        library.save_snapshot(tmp_path / "snapshot.db")
        data = bytearray((tmp_path / "snapshot.db").read_bytes())
        data[4096 * 4 :] = bytes(len(data) - 4096 * 4)
        (tmp_path / "snapshot.db").write_bytes(data)
        with pytest.raises(LibraryDamagedError):
            library.load_snapshot(tmp_path / "snapshot.db")
        with pytest.raises(ExperienceError, match="there is no experience library"):
            library.load_snapshot(tmp_path / "nothing.db")
        assert library.library_size() == 300


def test_locked_file_says_so_and_works_again(path):
    with ExperienceLibrary(path, timeout=0.1) as library:
        library.add(Lesson("before"))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LibraryLockedError, match="holds the write lock"):
            library.add(Lesson("meanwhile"))
        assert len(library) == 1
        other.execute("ROLLBACK")
        other.close()
        library.add(Lesson("after"))
        assert [lesson.text for lesson in library] == ["before", "after"]


def test_full_disk_loses_the_transaction_only(path):
    with ExperienceLibrary(path) as library:
        library.add(Lesson("kept"))
        pages = library._store.value("PRAGMA page_count")
        library._store.rows(f"PRAGMA max_page_count = {pages + 20}")
        group = RolloutGroup("p", ["x" * 100_000, "y" * 100_000, "a", "b"], [1, 1, 0, 0])
        with pytest.raises(DiskFullError, match="rolled back"):
            library.add_rollout_groups([RolloutGroup("q", list("abcd"), [1, 0, 0, 0]), group])
        assert [lesson.text for lesson in library] == ["kept"]
        assert (library.stats().total_rollouts, library.check_integrity()) == (0, [])
        library._store.rows("PRAGMA max_page_count = 1000000")
        assert len(library.add_rollout_groups([group])[0]) == 2


def test_ten_megabytes_in_a_record(library):
    response = "word " * 2_000_000
    prompt = "big " * 100_000
    library.add_rollout_group([(prompt, response), *((prompt, short) for short in "bcd")], [1.0, 0.0, 0.0, 0.0])
    assert library.sample_experience().response == response
    assert library.retrieve_episodes("some big thing")[0].record.response == response


def test_missing_folder_and_missing_file(tmp_path):
    with pytest.raises(ExperienceError, match="folder does not exist"):
        ExperienceLibrary(tmp_path / "no" / "experiences.db")
    with pytest.raises(ExperienceError, match="there is no experience library"):
        ExperienceLibrary(tmp_path / "experiences.db", create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [{"durability": "none"}, {"storage": "cloud"}])
def test_unknown_options_are_refused(arguments):
    with pytest.raises(ValueError, match="must be one of"):
        ExperienceLibrary(**arguments)


def test_file_of_an_interpreter_without_fts5_is_indexed_by_one_with_it(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("trl_grpo_ext.experience.store.has_full_text", lambda connection: False)
        with ExperienceLibrary(path) as library:
            library.add(Episode("an apple", "r", 1.0))
    with ExperienceLibrary(path) as library:
        library.add(Episode("a pear", "r", 1.0))
        assert len(library.retrieve_episodes("apple or pear")) == 2
    with monkeypatch.context() as patch:
        patch.setattr("trl_grpo_ext.experience.store.has_full_text", lambda connection: False)
        with ExperienceLibrary(path) as library:
            library.add(Episode("a cherry", "r", 1.0))
            assert len(library.retrieve_episodes("apple or pear or cherry")) == 3
    with ExperienceLibrary(path) as library:
        assert len(library.retrieve_episodes("apple or pear or cherry")) == 3


def test_library_that_another_process_made_meanwhile_is_not_replaced(path):
    with ExperienceLibrary(path) as library:
        library.add(Lesson("a"))
    _create(path)
    with ExperienceLibrary(path) as library:
        assert [lesson.text for lesson in library] == ["a"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_copied_file_is_the_same_library(path, tmp_path):
    with ExperienceLibrary(path) as library:
        library.add(Lesson("a"))
    shutil.copy(path, tmp_path / "copy.db")
    with ExperienceLibrary(tmp_path / "copy.db", create=False) as library:
        assert [lesson.text for lesson in library] == ["a"]

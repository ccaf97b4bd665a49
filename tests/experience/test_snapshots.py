import os
import subprocess
import sys

import pytest

from trl_grpo_ext.experience import ExperienceError, ExperienceLibrary, Lesson, SnapshotConflictError
from trl_grpo_ext.experience.snapshots import file_system, on_network

MOUNTS = """/dev/vda / ext4 rw 0 0
server:/home /mnt/a\\040b nfs4 rw 0 0
tmpfs /mnt/a\\040b/local tmpfs rw 0 0
user@host: /ssh fuse.sshfs rw 0 0
"""


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "local").mkdir()
    (tmp_path / "network").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "local"))
    return tmp_path / "local"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "network" / "experiences.db"


def opened(path, **others):
    return ExperienceLibrary(path, storage="snapshot", **others)


def texts(path):
    with ExperienceLibrary(path, storage="local", create=False) as library:
        return [lesson.text for lesson in library]


def test_type_of_file_system_is_that_of_the_nearest_mount(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    found = {}
    for place in ("/etc", "/mnt/a b/x/y", "/mnt/a b/local/x", "/mnt/a", "/ssh"):
        found[place] = file_system(type(mounts)(place), mounts)
    assert found == {
        "/etc": "ext4",
        "/mnt/a b/x/y": "nfs4",
        "/mnt/a b/local/x": "tmpfs",
        "/mnt/a": "ext4",
        "/ssh": "fuse.sshfs",
    }
    assert on_network(type(mounts)("/mnt/a b/x"), mounts)
    assert not on_network(tmp_path, tmp_path / "none")


def test_network_path_is_found_out(path, monkeypatch, tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {path.parent} nfs4 rw 0 0\n")
    monkeypatch.setattr("trl_grpo_ext.experience.snapshots.MOUNTS", mounts)
    monkeypatch.setattr("trl_grpo_ext.experience.snapshots.file_system.__defaults__", (mounts,))
    monkeypatch.setattr("trl_grpo_ext.experience.snapshots.on_network.__defaults__", (mounts,))
    with ExperienceLibrary(path) as library:
        library.add(Lesson("a"))
        assert os.listdir(path.parent) == []
        library.flush()
        assert os.listdir(path.parent) == [path.name]
    monkeypatch.setattr("tempfile.tempdir", str(path.parent))
    with pytest.raises(ExperienceError, match="set TMPDIR to a local disk"):
        ExperienceLibrary(path)


def test_snapshots_are_whole_libraries_without_a_log(path):
    with opened(path) as library:
        library.add(Lesson("a"))
    assert os.listdir(path.parent) == [path.name]
    assert texts(path) == ["a"]


def test_published_by_the_clock(path):
    with opened(path, snapshot_every=0.0) as library:
        library.add(Lesson("a"))
        assert texts(path) == ["a"]
        with library.transaction():
            library.add(Lesson("b"))
            assert library.version > 0
        assert texts(path) == ["a", "b"]


def test_unpublished_work_of_a_killed_process_is_found_again(path, subprocess_environment, temporary_folder):
    code = f"""
import os, tempfile
tempfile.tempdir = {str(temporary_folder)!r}
from trl_grpo_ext.experience import ExperienceLibrary, Lesson
library = ExperienceLibrary({str(path)!r}, storage="snapshot")
library.add(Lesson("published")); library.flush(); library.add(Lesson("not yet"))
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code], env=subprocess_environment, check=False)
    assert texts(path) == ["published"]
    with opened(path) as library:
        assert [lesson.text for lesson in library] == ["published", "not yet"]
    assert texts(path) == ["published", "not yet"]


def test_target_that_went_its_own_way_wins_and_nothing_is_lost(path, tmp_path, temporary_folder):
    with opened(path) as library:
        library.add(Lesson("a"))
    other = opened(path)
    other.add(Lesson("never published"))
    other._store.close()
    with ExperienceLibrary(path, storage="local") as elsewhere:
        elsewhere.add(Lesson("of another machine"))
        elsewhere._store.set_meta("snapshot", "theirs")
    with pytest.warns(UserWarning, match="grpo-ext experiences merge"), opened(path) as library:
        assert [lesson.text for lesson in library] == ["a", "of another machine"]
        (aside,) = temporary_folder.rglob("unpublished-*.db")
        assert library.merge(aside) == 1
    assert texts(path) == ["a", "of another machine", "never published"]


def test_two_machines_that_write_do_not_overwrite_each_other(path):
    with opened(path) as library:
        library.add(Lesson("a"))
    library = opened(path)
    library.add(Lesson("mine"))
    with ExperienceLibrary(path, storage="local") as elsewhere:
        elsewhere.add(Lesson("theirs"))
        elsewhere._store.set_meta("snapshot", "theirs")
    with pytest.raises(SnapshotConflictError, match="written by another process"):
        library.close()
    assert texts(path) == ["a", "theirs"]
    (beside,) = path.parent.glob("experiences-conflict-*.db")
    assert texts(beside) == ["a", "mine"]


def test_target_that_was_deleted_stays_deleted(path):
    with opened(path) as library:
        library.add(Lesson("a"))
    path.unlink()
    with opened(path) as library:
        assert len(library) == 0


def test_missing_folder(path):
    with pytest.raises(ExperienceError, match="folder does not exist"):
        opened(path.parent / "no" / "experiences.db")
    with pytest.raises(ValueError, match="needs a path"):
        ExperienceLibrary(storage="snapshot")

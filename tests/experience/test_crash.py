"""Two writers killed at random: every group is whole or absent, and a rerun stores nothing twice."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from trl_grpo_ext.experience import ExperienceLibrary

WRITER = Path(__file__).with_name("crash_writer.py")
GROUPS = 100_000


def start(path, writer, groups, environment):
    command = [sys.executable, str(WRITER), str(path), writer, str(groups)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def assert_whole(path):
    """Each prompt has the four episodes of its group or none, the counts fit, and SQLite finds nothing wrong."""
    with ExperienceLibrary(path, create=False) as library:
        held = Counter(item.prompt for item in library)
        assert set(held.values()) <= {4}
        stats = library.stats()
        assert (stats.total_rollouts, stats.total_stored) == (8 * len(held), 4 * len(held))
        assert (library.library_size(), library.check_integrity()) == (4 * len(held), [])
        for writer in "ab":
            numbers = sorted(int(prompt[2:]) for prompt in held if prompt.startswith(writer))
            assert numbers == list(range(len(numbers)))
        assert len(library.diff(0).added) == 4 * len(held)
        return len(held)


def kill_writers(path, environment, random, longest):
    writers = [start(path, writer, GROUPS, environment) for writer in "ab"]
    try:
        for process in writers:
            assert process.stdout.readline() == "open\n"
        time.sleep(random.uniform(0.0, longest))
    finally:
        for process in writers:
            process.kill()
            process.wait()
            process.stdout.close()


def crash(path, environment, kills, longest):
    random, sizes = Random(0), [0]
    for _ in range(kills):
        kill_writers(path, environment, random, longest)
        sizes.append(assert_whole(path))
    assert sizes == sorted(sizes)
    assert sizes[-1] > 0
    # To the end now, both from their first group.
    last = max(20, sizes[-1])
    for writer in "ab":
        process = start(path, writer, last, environment)
        process.communicate()
        assert process.returncode == 0
    total = assert_whole(path)
    assert total >= 2 * last
    for writer in "ab":
        start(path, writer, last, environment).communicate()
    assert assert_whole(path) == total


def test_killed_writers_leave_whole_groups(tmp_path, subprocess_environment):
    crash(tmp_path / "experiences.db", subprocess_environment, kills=2, longest=0.4)


@pytest.mark.slow
def test_fifty_kills_leave_whole_groups(tmp_path, subprocess_environment):
    crash(tmp_path / "experiences.db", subprocess_environment, kills=50, longest=0.5)


def test_processes_that_open_a_new_library_at_once_share_it(tmp_path, subprocess_environment):
    path = tmp_path / "experiences.db"
    writers = [start(path, writer, 5, subprocess_environment) for writer in "ab"]
    assert [process.communicate()[0] for process in writers] == ["open\n", "open\n"]
    assert [process.returncode for process in writers] == [0, 0]
    assert assert_whole(path) == 10
    assert [file.name for file in tmp_path.iterdir()] == [path.name]

"""Two gloo ranks: one library, one version, one text per group; and what the other ranks learn of a failure."""

import json
from types import SimpleNamespace

import pytest

from tests.experience.callback_runs import GROUP, LESSONS, QUESTIONS, lessons_library
from tests.ranks import run_ranks
from trl_grpo_ext import ExperienceLibrary
from trl_grpo_ext.experience import ExperienceConfig, ExperienceError, sharing


def test_two_ranks_inject_and_learn_as_one(tmp_path):
    ExperienceLibrary(tmp_path / "experiences.db", ExperienceConfig(max_history=1000)).close()
    lessons_library(tmp_path / "experiences.db").close()
    run_ranks("tests.experience.callback_two_ranks", tmp_path)
    one, two = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    for name in ("versions", "held", "horizon", "metrics", "rollouts"):
        assert one[name] == two[name], name
    # One version per step, and both ranks read it at the next generation.
    first = one["versions"][0]
    last = one["versions"][-1]
    assert one["versions"] == [first, first + 1, first + 2, first + 3, last]
    # Before the last step another process has written more than the history holds: the copies were made anew.
    assert last == first + 4 + 130 and one["horizon"] > first + 3
    assert set(one["plain"]) | set(two["plain"]) <= set(QUESTIONS)
    check_groups(one["prompts"], two["prompts"])
    with ExperienceLibrary(tmp_path / "experiences.db") as library:
        assert library.counters().rollouts == one["rollouts"] == 4 * 2 * GROUP
        assert [item.id for item in library.records()] == [name for name, *_ in one["held"]]
        assert any(item.uses for item in library.records("lesson"))
        # Rank 0 gives rewards 0 to 3, rank 1 4 to 7: of whole groups of one rank two rows are above the mean.
        assert {item.record.advantage for item in library.records("episode")} == {0.5, 1.5}
    assert (tmp_path / "out" / "checkpoint-4" / "experiences.db").is_file()


def check_groups(one, two):
    """TRL gives each rank whole or half groups in order: the world's rows are rank 0's, then rank 1's, per step."""
    per_rank = len(one) // 4
    for step in range(4):
        world = one[step * per_rank : (step + 1) * per_rank] + two[step * per_rank : (step + 1) * per_rank]
        groups = [world[start : start + GROUP] for start in range(0, len(world), GROUP)]
        assert all(len(set(group)) == 1 for group in groups)
    texts = set(one + two)
    assert any(LESSONS[0] in text for text in texts) and any(LESSONS[0] not in text for text in texts)
    assert any("\nA: " in text for text in texts), "no episode was injected"


def accelerator(main):
    return SimpleNamespace(num_processes=2, is_main_process=main)


def test_a_failure_of_the_main_process_ends_every_rank(monkeypatch):
    sent = []

    def broadcast(box):
        if sent:
            box[:] = sent[0]
        else:
            sent.append(list(box))

    monkeypatch.setattr(sharing, "broadcast_object_list", broadcast)

    def full():
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        sharing.from_main(accelerator(True), full)
    with pytest.raises(ExperienceError, match="main process failed: OSError: the disk is full"):
        sharing.from_main(accelerator(False), full)


def test_a_rank_that_is_not_the_main_one_opens_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    sharing.SharedLibrary(tmp_path / "experiences.db")
    assert not (tmp_path / "experiences.db").exists()

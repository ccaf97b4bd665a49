"""The benchmark in LessonWorld runs, and over 30 seeds it shows what the issue asks for."""

import pytest

from benchmarks import training_free


def test_two_seeds_give_every_figure(monkeypatch):
    monkeypatch.setattr(training_free, "MEASURED", 30)
    monkeypatch.setattr(training_free, "DRAWS", 1)
    found = training_free.run(2, print)
    assert {"full", "base", "direct", "no group", "no ground truth", "weak gated"} <= {
        item["arm"] for item in found["results"]
    }
    assert found["name"] == "training_free" and len(found["goals"]) == 11
    assert all({"name", "goal", "value", "met"} == set(goal) for goal in found["goals"])


@pytest.mark.slow
def test_thirty_seeds_meet_every_goal():
    found = training_free.run(training_free.SEEDS, print)
    assert [goal for goal in found["goals"] if not goal["met"]] == []

"""`benchmarks/gate.py`: rows, goals and intervals, with few runs."""

import gate
import numpy as np
import pytest


def test_rows_and_goals():
    rows, goals = gate.measure(8)
    assert {row["rule"] for row in rows if "rule" in row} == {
        *("gate", "higher mean", "t-test at every look", "t-test at the end"),
    }
    assert all(0 <= row["accepts"] <= 1 for row in rows if "rule" in row)
    assert [goal["name"].split(",")[0] for goal in goals][:2] == ["false accepts", "false accepts"]
    assert all(isinstance(goal["met"], bool) for goal in goals)


def test_effects_are_the_true_mean_improvements():
    rng = np.random.default_rng(0)
    for effect in (0.0, 0.3):
        current, candidate = gate.shifted(effect)(rng, 1000)
        assert candidate - current == pytest.approx(effect) and current.min() >= 0 and candidate.max() <= 1
    current, candidate = gate.mixed(rng, 10_000)
    assert (candidate - current).mean() == pytest.approx(0, abs=0.02)


def test_missed_goal_is_written_as_missed():
    good, bad = ({"arm": "a", "runs": 10, "accepts": value} for value in (0.05, 0.06))
    lessons = [{"problems": 5, "misses_any": 0.2, "misses_interval": [0.1, 0.3]}]
    found = gate.goals(good, bad, {"accepts": 0.95}, lessons)
    assert [goal["met"] for goal in found] == [True, False, False, False]


def test_interval_of_a_rate():
    assert gate.wilson(0, 200) == [0.0, 0.0188] and gate.wilson(100, 200) == [0.4314, 0.5686]

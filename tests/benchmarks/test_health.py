"""benchmarks/health.py: which runs there are, and what its goals make of what the rules have said."""

import health
import pytest


def run(control, rules, steps=60):
    return {"control": control, "rules": rules, "steps": steps}


def test_goals():
    rows = [run("none", []), run("shuffled", ["dead_groups"]), run("flipped", ["length_drift"])]
    assert [goal["met"] for goal in health.goals(rows)] == [True, True]
    rows += [run("none", ["clipping"]), run("shuffled", ["kl_divergence"]), run("shuffled", [], steps=40)]
    healthy, shuffled = health.goals(rows)
    assert (healthy["value"], healthy["met"]) == (1, False)
    assert (shuffled["value"], shuffled["goal"], shuffled["met"]) == (1, 2, False)
    assert len(health.goals([run("shuffled", [], steps=40)])) == 1


def test_runs_are_those_of_the_learning_benchmark():
    options = health.parse(["--quick", "--presets", "trl,grpo"])
    assert [(job.arm, job.control) for job in health.jobs(options)] == [
        ("trl", "none"),
        ("grpo", "none"),
        ("trl", "shuffled"),
        ("trl", "flipped"),
    ]
    for wrong in (["--seeds", "0"], ["--tasks", "chess"], ["--controls", "none"]):
        with pytest.raises(SystemExit):
            health.parse(wrong)

"""The whole loop in LessonWorld: it learns, it loses nothing, and what it gives does not depend on concurrency."""

import json
from collections import Counter
from dataclasses import replace
from statistics import fmean

import pytest

from tests.training_free.lesson_world import HARMFUL, World, lesson, solved
from tests.training_free.runs import GATE, export, learner, score, train
from trl_grpo_ext.experience import ExperienceLibrary, Lesson
from trl_grpo_ext.training_free import (
    BackendError,
    GateConfig,
    TrainingFreeConfig,
    TrainingFreeGRPO,
    system_prompt,
)
from trl_grpo_ext.training_free.backends.scripted import ScriptedBackend


def test_it_learns_the_rules_of_the_world():
    world = World(seed=1)
    run = learner(world)
    lessons = train(run, world)
    assert {item.text for item in lessons} <= set(world.truth()) and len(lessons) >= 5
    report = run.report
    assert report.status == "finished" and report.gated
    assert report.rewards[-1] > report.rewards[0] + 0.2
    assert score(run, world) > score(run, world, []) + 0.3
    first = report.steps[0]
    assert first["accepted"] and first["joined_by"] == "reflector"
    assert first["gate"]["lower"] > 0 and first["gate"]["minimum_detectable_effect"] > 0
    assert first["rollouts"] == 60 and first["groups"] == 12 and 0 < first["groups_compared"] <= 12


def test_rollouts_and_serving_see_the_lessons_in_one_place():
    world = World(seed=1)
    run = learner(world, template="Read this.\n{experiences}\nNow begin.")
    lessons = train(run, world)
    shown = system_prompt(lessons, run.config.template)
    assert shown.startswith("Read this.\nLessons from") and shown.endswith("Now begin.")
    run.infer("Task 9: this is a amber task.")
    served = list(run.policy.asked)[-1].messages
    assert served == (("system", shown), ("user", "Task 9: this is a amber task."))
    assert any(request.messages[0] == ("system", shown) for request in list(run.policy.asked)[:-1])


@pytest.mark.parametrize("concurrency", [2, 64])
def test_any_concurrency_gives_the_same_bytes(tmp_path, concurrency):
    world = replace(World(seed=2), malformed=0.2, wrong=0.2)
    runs = [learner(world, concurrency=number, failing=0.2) for number in (1, concurrency)]
    for run in runs:
        train(run, world)
    assert runs[0].library.lesson_count() > 0
    assert export(runs[0], tmp_path) == export(runs[1], tmp_path)
    assert runs[0].report.as_dict() == runs[1].report.as_dict()


def test_another_seed_is_another_run(tmp_path):
    worlds = [replace(World(seed=3), wrong=0.3), replace(World(seed=3), wrong=0.3)]
    runs = [learner(world, seed=seed, gate=None) for seed, world in enumerate(worlds)]
    for run, world in zip(runs, worlds, strict=True):
        train(run, world)
    assert export(runs[0], tmp_path) != export(runs[1], tmp_path)


def test_concurrency_64_with_failing_calls_loses_nothing():
    world = replace(World(seed=4), malformed=0.2)
    run = learner(world, concurrency=64, failing=0.2, lost=0.02)
    train(run, world)
    report = run.report
    for step in report.steps:
        assert step["rollouts"] in (60, 0)
    failed = sum(step["failed"] for step in report.steps)
    assert 0 < failed < 20
    assert report.spent["failures"] > 100
    # Every compared group was answered, refused with reasons, or is pending.
    assert report.status in ("finished", "degraded")
    assert bool(report.pending) == (report.status == "degraded")
    assert report.rewards[-1] > report.rewards[0]


def test_with_attempts_enough_failing_calls_change_nothing(tmp_path):
    world = replace(World(seed=4), malformed=0.2)
    calm, stormy = learner(world), learner(world, concurrency=64, failing=0.2, max_attempts=9)
    for run in (calm, stormy):
        train(run, world)
    assert stormy.report.status == "finished" and sum(step["failed"] for step in stormy.report.steps) == 0
    assert export(stormy, tmp_path) == export(calm, tmp_path)
    without = [{**run.report.as_dict(), "spent": {}, "fingerprint": ""} for run in (calm, stormy)]
    assert without[0] == without[1] and stormy.report.spent["failures"] > 100


def test_failed_rollouts_stay_in_the_denominators_and_teach_nothing():
    """A policy that is always right, when it answers: no group has a spread, and the mean reward is the share answered."""
    world = replace(World(seed=5), guess=1.0)
    run = learner(world, lost=0.3, gate=None, max_attempts=1)
    assert train(run, world) == []
    step = run.report.steps[0]
    assert step["failed"] > 5 and step["groups_compared"] == 0
    assert step["reward"] == pytest.approx(1 - step["failed"] / step["rollouts"])
    evaluation = run.evaluate(world.rows(40, 900), solved)
    assert evaluation.failed > 3 and evaluation.mean == pytest.approx(1 - evaluation.failed / 40)


def test_a_reflector_that_is_away_leaves_everything_pending_and_a_later_call_catches_up():
    world, away = World(seed=6), [True]

    def reflector(request, count):
        if away[0]:
            raise BackendError("connection refused")
        return world.reflector(request, count)

    policy, _ = world.backends()
    config = TrainingFreeConfig(batch_size=12, num_train_epochs=1, gate=None)
    run = TrainingFreeGRPO(policy, config, reflector=ScriptedBackend(reflector, "away"))
    assert train(run, world) == []
    # The last step, and one try more.
    assert (run.report.status, len(run.report.steps)) == ("degraded", 2)
    compared = run.report.steps[0]["groups_compared"]
    assert len(run.report.pending) == compared > 3
    assert {item["stage"] for item in run.report.pending} == {"summary"}
    assert all("connection refused" in item["error"] for item in run.report.pending)
    assert {item["attempts"] for item in run.report.pending} == {2}


def test_pending_groups_are_compared_in_the_next_step():
    """The reflector is away for the comparisons of the first step; the second step brings them in."""
    world, asked = World(seed=6), Counter()

    def reflector(request, count):
        if request.messages[0][1].startswith("You keep") and asked["step 1"] < 12 * 3:
            asked["step 1"] += 1
            return "I can't say."
        return world.reflector(request, count)

    policy, _ = world.backends()
    run = TrainingFreeGRPO(policy, TrainingFreeConfig(batch_size=12, gate=None), reflector=ScriptedBackend(reflector))
    train(run, world)
    first, second = run.report.steps[:2]
    assert first["pending"] > 3 and first["candidate"] == []
    assert second["groups_compared"] > first["groups_compared"] and second["pending"] < first["pending"]
    assert run.report.status == "finished" and run.library.lesson_count() >= 5


def test_malformed_answers_are_asked_again_with_the_error():
    world, seen = World(seed=7), []

    def reflector(request, count):
        if request.messages[0][1].startswith("You keep") and len(request.messages) == 2:
            return '[{"operation": "add"'
        if len(request.messages) > 2:
            seen.append(request.messages[-1][1])
        return world.reflector(request, count)

    policy, _ = world.backends()
    run = TrainingFreeGRPO(policy, TrainingFreeConfig(batch_size=12, gate=None), reflector=ScriptedBackend(reflector))
    train(run, world)
    assert seen and all("malformed or cut off" in text for text in seen)
    assert run.report.status == "finished" and run.library.lesson_count() >= 5


def test_refused_operations_stand_in_the_report_with_reasons():
    world = World(seed=8)

    def reflector(request, count):
        if request.messages[0][1].startswith("You keep"):
            return json.dumps([{"operation": "delete", "id": "12345678"}])
        return world.reflector(request, count)

    policy, _ = world.backends()
    run = TrainingFreeGRPO(policy, TrainingFreeConfig(batch_size=12, gate=None), reflector=ScriptedBackend(reflector))
    assert train(run, world) == [] and run.report.status == "finished"
    step = run.report.steps[0]
    assert len(step["rejected"]) == step["groups_compared"] > 3
    assert {item["reason"] for item in step["rejected"]} == {"there is no lesson '12345678'"}


def test_a_consolidation_that_fails_is_done_by_rule():
    world = World(seed=8)

    def reflector(request, count):
        return "no" if request.messages[0][1].startswith("Several") else world.reflector(request, count)

    policy, _ = world.backends()
    run = TrainingFreeGRPO(policy, TrainingFreeConfig(batch_size=12, gate=None), reflector=ScriptedBackend(reflector))
    assert len(train(run, world)) >= 5
    assert run.report.steps[0]["joined_by"] == "rule" and run.report.status == "finished"


def test_a_weak_reflector_makes_it_worse_without_the_gate_and_not_with_it():
    without, with_gate, base = [], [], []
    for seed in range(4):
        world = World(seed=seed).weak()
        for gate, scores in ((None, without), (GATE, with_gate)):
            run = learner(world, gate=gate, lesson_dropout=0.0)
            train(run, world)
            scores.append(score(run, world))
        base.append(score(run, world, []))
    assert fmean(without) < fmean(base) - 0.05
    assert fmean(with_gate) >= fmean(base) - 0.01


def test_a_harmful_lesson_is_found_by_random_inclusion_and_stays_out():
    world = World(seed=9)
    library = ExperienceLibrary()
    library.add(Lesson(HARMFUL, 0.0), *(Lesson(text, 0.0) for text in world.truth()))
    run = learner(world, library=library, gate=None, num_generations=8, batch_size=48, min_retire_problems=20)
    lessons = train(run, world, problems=48)
    assert HARMFUL not in {item.text for item in lessons} and len(lessons) == 6
    assert sum(len(step["retired"]) for step in run.report.steps) == 1
    harmful_id = Lesson(HARMFUL, 0.0).id
    effect = next(step["lessons"][harmful_id] for step in run.report.steps if step["retired"])
    assert effect["upper"] < 0 and effect["problems"] >= 20
    helpful = library.get(Lesson(world.truth()[0], 0.0).id)
    assert helpful.uses > 10 and helpful.gain / helpful.uses > 0


def test_without_dropout_nothing_is_said_about_lessons():
    world = World(seed=9)
    run = learner(world, lesson_dropout=0.0)
    train(run, world)
    assert all(effect["problems"] == 0 for step in run.report.steps for effect in step["lessons"].values())


def test_no_lesson_means_anything_and_few_are_accepted():
    """The null case in small; benchmarks/gate.py has it in full."""
    accepted = 0
    for seed in range(10):
        world = replace(World(seed=seed), effect=False)
        run = learner(world, num_train_epochs=1, lesson_dropout=0.0)
        train(run, world, held_out=50)
        accepted += any(step["accepted"] for step in run.report.steps)
    assert accepted <= 2


def test_domains_do_not_interfere():
    one, other = World(seed=1), World(seed=2, prefix="x")
    library = ExperienceLibrary()
    for domain, world in (("one", one), ("other", other)):
        train(learner(world, library=library, domain=domain), world)
    runs = {name: learner(world, library=library, domain=name) for name, world in (("one", one), ("other", other))}
    assert {item.text for item in runs["one"].lessons()} <= set(one.truth())
    assert {item.text for item in runs["other"].lessons()} <= set(other.truth())
    alone = learner(one, domain="one")
    train(alone, one)
    assert [item.text for item in alone.lessons()] == [item.text for item in runs["one"].lessons()]
    assert score(runs["one"], one) == score(alone, one)


def test_ground_truth_free_mode_never_shows_an_answer():
    """The reward is self-consistency: the majority's method is right more often than not, here."""
    world = replace(World(seed=3), guess=0.7)
    run = learner(world, gate=None, given_ground_truth=False, num_generations=7, batch_size=24)
    lessons = run.train(world.rows(24), "self_consistency")
    assert len(lessons) >= 4 and {item.text for item in lessons} <= set(world.truth())
    answers = {row["answer"] for row in world.rows(24)}
    shown = "\n".join(text for request in run.reflector.asked for _, text in request.messages)
    assert "Correct answer" not in shown
    assert not any(f"Correct answer: {answer}" in shown for answer in answers)
    rows = [{"prompt": row["prompt"], "solution": row["answer"]} for row in world.rows(6)]
    with pytest.raises(ValueError, match=r"needs the column 'solution'.*given_ground_truth=False withholds it"):
        learner(world, gate=None, given_ground_truth=False).train(rows, "exact_match")


def test_ground_truth_free_mode_with_a_gate_compares_groups():
    world = replace(World(seed=3), guess=0.6)
    gate = GateConfig(min_pairs=20, look_every=20, seeds=5)
    run = learner(world, gate=gate, given_ground_truth=False, num_generations=7, batch_size=24)
    run.train(world.rows(24), "self_consistency", world.rows(60, 1000))
    assert run.report.steps[0]["gate"]["pairs"] >= 20


def test_without_a_group_it_learns_from_single_rollouts():
    world = World(seed=1)
    run = learner(world, gate=None, num_generations=1, require_spread=False, batch_size=24)
    train(run, world, problems=24)
    assert run.report.steps[0]["groups_compared"] == 24 and run.library.lesson_count() > 0


def test_a_policy_that_is_not_there_is_no_failure_of_the_lessons():
    world, gone = World(seed=1), [True]

    def policy(request, count):
        if gone[0]:
            raise BackendError("connection refused")
        return world.policy(request, count)

    _, reflector = world.backends()
    config = TrainingFreeConfig(batch_size=12, gate=GATE)
    run = TrainingFreeGRPO(ScriptedBackend(policy), config, reflector=reflector)
    with pytest.raises(BackendError, match=r"all 60 rollouts of step 0 failed.*connection refused.*run the same"):
        train(run, world)
    assert run.report.status == "interrupted" and run.report.steps == []
    gone[0] = False
    assert len(train(run, world)) >= 5


def test_held_out_rollouts_that_all_fail_stop_the_run():
    world = World(seed=1)

    def policy(request, count):
        if re_held_out(request):
            raise BackendError("connection refused")
        return world.policy(request, count)

    def re_held_out(request):
        return int(request.messages[-1][1].split()[1].rstrip(":")) >= 1000

    _, reflector = world.backends()
    run = TrainingFreeGRPO(ScriptedBackend(policy), TrainingFreeConfig(batch_size=12, gate=GATE), reflector=reflector)
    with pytest.raises(BackendError, match="on the held-out problems"):
        train(run, world)


def test_one_rollout_of_a_problem_that_stands_twice_is_two_groups():
    world = World(seed=1)
    rows = world.rows(6)
    run = learner(world, gate=None, num_train_epochs=1)
    run.train([*rows, *rows], "self_consistency")
    assert run.report.steps[0]["groups"] == 12


def test_the_gate_splits_the_data_by_itself():
    world = World(seed=1)
    run = learner(world, batch_size=100)
    run.train(world.rows(120), solved)
    assert run.report.steps[0]["rollouts"] == 84 * 5
    assert run.report.steps[0]["gate"]["pairs"] <= 36


def test_lessons_may_be_texts_in_infer_and_evaluate():
    world = World(seed=1)
    run = learner(world)
    right = [lesson(kind, world.right(kind)) for kind in world.names()]
    assert score(run, world, right) > score(run, world, []) + 0.4
    assert "Answer: " in run.infer("Task 3: this is a amber task.", right)

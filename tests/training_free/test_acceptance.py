"""The pairs that the gate is given, and what the rollouts say about each lesson."""

import pytest

from tests.training_free.lesson_world import World
from trl_grpo_ext.experience import Lesson, Stored
from trl_grpo_ext.training_free import AcceptanceGate, GateConfig
from trl_grpo_ext.training_free.acceptance import compare, held_out_keys
from trl_grpo_ext.training_free.evaluation import evaluation_of, pass_at_k
from trl_grpo_ext.training_free.evidence import gains, harmful, inclusions, measured
from trl_grpo_ext.training_free.problems import read_problems
from trl_grpo_ext.training_free.rollouts import Rollout, shown_lessons, spread, teaches

HELD_OUT = read_problems(World().rows(20), ("answer",))
OLD, NEW = (Stored(text, Lesson(text, 0.0)) for text in ("old", "new"))


def test_pairs_have_one_seed_whole_problems_and_arms_of_their_own():
    looks = []

    def roll(asks):
        looks.append(asks)
        return [Rollout(ask.problem, (), "", float(NEW in ask.lessons)) for ask in asks]

    gate = AcceptanceGate(GateConfig(seeds=3, look_every=7, min_pairs=12, max_pairs=40))
    decision = compare([OLD], [OLD, NEW], HELD_OUT, gate, roll, seed=0)
    assert decision.verdict == "accept" and decision.pairs == 9 * len(looks)
    for asks in looks:
        current, candidate = asks[:9], asks[9:]
        assert [ask.seed for ask in current] == [ask.seed for ask in candidate]
        assert {ask.arm for ask in current} == {"current"} and {ask.arm for ask in candidate} == {"candidate"}
        assert len({ask.problem.id for ask in current}) == 3
    seeds = [ask.seed for asks in looks for ask in asks[:9]]
    assert len(set(seeds)) == len(seeds)


def test_no_more_pairs_than_allowed_and_problems_in_the_order_of_their_ids():
    keys = held_out_keys(HELD_OUT, 3, 40)
    assert len(keys) == 39 and keys == sorted(keys) and len({name for name, _ in keys}) == 13


def test_a_failed_rollout_is_a_pair_with_the_reward_of_a_failure():
    def roll(asks):
        return [Rollout(ask.problem, (), "", 0.0, "lost" if ask.problem == HELD_OUT[0] else "") for ask in asks]

    gate = AcceptanceGate(GateConfig(min_pairs=20, max_pairs=40))
    assert compare([OLD], [NEW], HELD_OUT, gate, roll, 0).pairs == 20


def rollouts(rewards, problem=HELD_OUT[0]):
    """One rollout per (lessons shown, reward)."""
    return [Rollout(problem, tuple(shown), "", reward) for shown, reward in rewards]


def test_gains_are_within_problems():
    group = rollouts([("ab", 1.0), ("a", 0.5), ("b", 0.0), ("", 0.5)])
    other = rollouts([("a", 1.0), ("a", 0.0)], HELD_OUT[1])
    assert gains([*group, *other], "ab") == [("a", 0.5), ("b", 0.0)]


def step_record(step, effect, operations=(), count=30):
    found = []
    for problem in range(count):
        for number in range(4):
            shown = ["a"] if number % 2 else []
            found.append([str(problem), shown, 0.5 + (effect if shown else 0.0) + 0.001 * ((problem + number) % 3)])
    return {"step": step, "operations": list(operations), "inclusions": found}


def test_a_lesson_is_judged_by_what_was_measured_since_its_text_changed():
    update = {"kind": "update", "ids": ["a"], "text": "better"}
    assert measured([step_record(0, -0.4)], ["a"], 0.05)["a"].effect == pytest.approx(-0.4, abs=0.01)
    found = measured([step_record(0, -0.4, [update]), step_record(1, 0.2)], ["a"], 0.05)
    assert found["a"].effect == pytest.approx(0.2, abs=0.01) and found["a"].problems == 30
    assert harmful(found, 10) == []


def test_harmful_needs_problems_enough():
    found = measured([step_record(0, -0.4)], ["a"], 0.05)
    assert harmful(found, 30) == ["a"] and harmful(found, 31) == []


def test_inclusion_is_random_and_the_same_every_time():
    lessons = [Stored(str(number), Lesson(str(number), 0.0)) for number in range(2000)]
    shown = shown_lessons(lessons, 0.2, 0, "rollout", 1)
    assert shown == shown_lessons(lessons, 0.2, 0, "rollout", 1) != shown_lessons(lessons, 0.2, 0, "rollout", 2)
    assert 1500 < len(shown) < 1700
    assert shown_lessons(lessons, 0.0, 0) == tuple(lessons)


def test_failed_rollouts_make_no_spread():
    problem = HELD_OUT[0]
    answered = Rollout(problem, (), "x", 1.0)
    lost = Rollout(problem, (), "", 0.0, "lost")
    unjudged = Rollout(problem, (), "x", 0.0, "", judged=False)
    assert spread([answered, lost, unjudged]) == 0.0 and not teaches([answered, lost], True)
    assert teaches([answered, lost], False) and not teaches([lost, unjudged], False)


def test_inclusions_are_json():
    assert inclusions(rollouts([("a", 1.0)])) == [[HELD_OUT[0].id, ["a"], 1.0]]


def test_pass_at_k():
    assert pass_at_k(4, 1, 1) == 0.25 and pass_at_k(4, 1, 4) == 1.0 and pass_at_k(4, 0, 2) == 0.0
    found = evaluation_of([*rollouts([("", 1.0), ("", 0.0)]), *rollouts([("", 0.0), ("", 0.0)], HELD_OUT[1])])
    assert (found.mean, found.pass_at(1), found.pass_at(2)) == (0.25, 0.25, 0.5)
    with pytest.raises(ValueError, match="k must be from 1 to the number of samples, 2, not 3"):
        found.pass_at(3)

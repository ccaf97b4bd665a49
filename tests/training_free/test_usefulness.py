"""What lessons do to the reward, found from randomised inclusion."""

import math
import random

import pytest

from trl_grpo_ext.training_free.usefulness import Inclusion, lesson_usefulness

EFFECTS = {"good": 0.3, "bad": -0.3, "idle": 0.0}


def experiment(seed, problems=60, group=5, hidden=0.4, noise=True, effects=EFFECTS):
    """Rollouts of problems of very different difficulty, each lesson hidden at random."""
    rng, found = random.Random(seed), []
    for problem in range(problems):
        base = rng.uniform(0.3, 0.7)
        for _ in range(group):
            shown = frozenset(name for name in effects if rng.random() >= hidden)
            chance = base + sum(effects[name] for name in shown)
            found.append(Inclusion(f"p{problem}", shown, float(rng.random() < chance) if noise else chance))
    return found


def test_effects_are_found_and_lessons_told_apart():
    found = lesson_usefulness(experiment(0, problems=150), EFFECTS)
    assert found["good"].useful and found["bad"].harmful
    assert not (found["idle"].useful or found["idle"].harmful)
    for name, effect in EFFECTS.items():
        assert found[name].lower < effect < found[name].upper
    assert found["bad"].probability_harmful > 0.99 > 0.5 > found["good"].probability_harmful


def test_intervals_miss_the_effect_of_any_lesson_in_five_percent_of_the_experiments_or_fewer():
    """200 experiments; binomial noise allows for up to 17 misses with a probability of 0.98."""
    misses = 0
    for seed in range(200):
        found = lesson_usefulness(experiment(seed, problems=30), EFFECTS)
        # Chances stay within [0, 1], so effects add up.
        misses += any(not found[name].lower <= EFFECTS[name] <= found[name].upper for name in ("good", "bad", "idle"))
    assert misses <= 17


def test_differences_between_problems_do_not_look_like_effects():
    """The lesson stands on all easy problems and on no hard one: nothing is known about it."""
    rollouts = [Inclusion("easy", frozenset({"a"}), 1.0)] * 5 + [Inclusion("hard", frozenset(), 0.0)] * 5
    found = lesson_usefulness(rollouts, ["a"])["a"]
    assert (found.effect, found.standard_error, found.problems) == (0.0, math.inf, 0)
    assert found.probability_harmful == 0.5 and not found.harmful and not found.useful


def test_lesson_that_stands_more_often_on_easy_problems_is_not_useful_for_that():
    with_it, without = frozenset({"a"}), frozenset()
    rows = {f"easy{n}": (4, 1.0) for n in range(6)} | {f"hard{n}": (1, 0.0) for n in range(6)} | {"mid": (2, 0.5)}
    rollouts = [
        Inclusion(problem, with_it if number < shown else without, reward)
        for problem, (shown, reward) in rows.items()
        for number in range(5)
    ]
    found = lesson_usefulness(rollouts, ["a"])["a"]
    assert found.effect == 0.0 and found.problems == 13 and found.lower < 0 < found.upper


def test_effect_is_the_within_problem_difference_of_means_where_groups_are_balanced():
    with_it, without = frozenset({"a"}), frozenset()
    rows = {
        "p": [(with_it, 1.0), (with_it, 0.0), (without, 0.0), (without, 0.0)],
        "q": [(with_it, 1.0), (without, 0.0)],
    }
    rollouts = [Inclusion(problem, shown, reward) for problem, items in rows.items() for shown, reward in items]
    found = lesson_usefulness(rollouts, ["a"])["a"]
    # Weights sum (z - z̄)^2: 1 for p, with a difference of 0.5, and 0.5 for q, with a difference of 1.
    assert found.effect == pytest.approx((1 * 0.5 + 0.5 * 1) / 1.5)
    assert (found.shown, found.hidden, found.problems) == (3, 3, 2)


def test_few_problems_that_agree_by_chance_prove_nothing():
    rollouts = [Inclusion(p, frozenset({"a"} if z else ()), float(z)) for p in ("p", "q") for z in (0, 1)]
    found = lesson_usefulness(rollouts, ["a"])["a"]
    assert found.effect == 1.0 and found.standard_error > 0 and not found.useful


def test_rewards_that_never_differ_prove_nothing():
    rollouts = [Inclusion(f"p{p}", frozenset({"a"} if z else ()), 1.0) for p in range(20) for z in (0, 1)]
    assert lesson_usefulness(rollouts, ["a"])["a"].standard_error == math.inf


def test_posterior_is_between_the_prior_and_the_effect_and_tightens():
    few, many = (lesson_usefulness(experiment(3, problems=count), ["good"])["good"] for count in (10, 200))
    assert 0 < few.posterior_mean < few.effect and many.posterior_deviation < few.posterior_deviation < 0.1
    weight = 0.1**2 / (0.1**2 + many.standard_error**2)
    assert many.posterior_mean == pytest.approx(weight * many.effect)


def test_intervals_widen_with_the_number_of_lessons_that_are_judged():
    rollouts = experiment(0)
    alone = lesson_usefulness(rollouts, ["idle"])["idle"]
    among = lesson_usefulness(rollouts, [*EFFECTS, *(f"l{n}" for n in range(20))])["idle"]
    assert among.upper - among.lower > alone.upper - alone.lower


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"prior_deviation": 0.0}, {"prior_deviation": math.nan}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="alpha must be in"):
        lesson_usefulness([], ["a"], **wrong)
    with pytest.raises(ValueError, match="finite; one of problem 'p'"):
        lesson_usefulness([Inclusion("p", frozenset(), math.nan)], ["a"])

"""The acceptance gate: verdicts, and how often it accepts what has no effect."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.training_free.gate import AcceptanceGate, GateConfig, problem_differences

QUESTIONS, SEEDS, LOOK = 50, 3, 30


def rewards(rng, chance, problems=QUESTIONS, seeds=SEEDS):
    """Binary rewards; `chance(problem)` is the probability of solving it."""
    return {(f"p{p}", s): float(rng.random() < chance(p)) for p in range(problems) for s in range(seeds)}


def run(gate, current, candidate):
    """Looks as the loop does: a few more problems each time, until the verdict."""
    keys = sorted(current)
    for end in range(LOOK, len(keys) + LOOK, LOOK):
        decision = gate.decide(current, {key: candidate[key] for key in keys[:end]})
        if decision.verdict != "continue":
            return decision
    return decision


def accepted(effect, runs, seed=0, alpha=0.05):
    """The share of simulated comparisons that are accepted. Problems differ in difficulty, as real ones do."""
    rng, found = random.Random(seed), 0
    gate = AcceptanceGate(GateConfig(alpha=alpha, min_pairs=LOOK, max_pairs=QUESTIONS * SEEDS, seeds=SEEDS))
    for _ in range(runs):
        chances = [rng.betavariate(1, 2) for _ in range(QUESTIONS)]
        current = rewards(rng, chances.__getitem__)
        better = [min(1.0, chance + effect) for chance in chances]
        found += run(gate, current, rewards(rng, better.__getitem__)).verdict == "accept"
    return found / runs


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_pure_noise_is_accepted_at_most_at_the_stated_rate(alpha):
    assert accepted(0.0, runs=200, alpha=alpha) <= alpha


def test_large_effect_is_accepted_as_a_rule():
    assert accepted(0.3, runs=40) >= 0.9


def test_harmful_candidate_is_rejected_before_the_pairs_are_used_up():
    rng = random.Random(0)
    gate = AcceptanceGate(GateConfig(seeds=SEEDS))
    decision = run(gate, rewards(rng, lambda p: 0.9), rewards(rng, lambda p: 0.1))
    assert decision.verdict == "reject" and decision.pairs < QUESTIONS * SEEDS and decision.upper < 0


def test_negative_margin_accepts_what_is_not_worse():
    same = {(f"p{p}", 0): 0.5 for p in range(200)}
    assert AcceptanceGate(GateConfig(margin=-0.1)).decide(same, same).verdict == "accept"
    assert AcceptanceGate(GateConfig(margin=0.0, max_pairs=1000)).decide(same, same).verdict == "continue"


def test_run_without_evidence_ends_at_max_pairs_and_says_what_could_have_been_seen():
    same = {(f"p{p}", 0): 0.5 for p in range(60)}
    decision = AcceptanceGate(GateConfig(max_pairs=60)).decide(same, same)
    assert decision.verdict == "reject" and "not shown to be above +0 by 60 pairs" in decision.reason
    assert f"least detectable {decision.minimum_detectable_effect:+.4f}" in decision.reason
    assert 0 < decision.minimum_detectable_effect < 0.2


def test_gate_for_a_small_held_out_set_ends_with_it_and_sees_more():
    keys = [(f"p{p}", seed) for p in range(QUESTIONS) for seed in range(SEEDS)]
    current, candidate = dict.fromkeys(keys, 0.4), {key: 0.55 + 0.35 * (-1) ** int(key[0][1:]) for key in keys}
    large = AcceptanceGate(GateConfig(seeds=SEEDS, min_pairs=200))
    small = large.sized(QUESTIONS)
    assert (small.config.max_pairs, small.config.min_pairs) == (150, 150)
    assert small.decide(current, candidate).verdict != "continue" == large.decide(current, candidate).verdict
    assert small.decide(current, candidate).lower > large.decide(current, candidate).lower
    assert large.sized(10_000).config == large.config
    with pytest.raises(ValueError, match="problems must be at least 1"):
        large.sized(0)


def test_too_few_pairs_give_no_verdict():
    gate = AcceptanceGate(GateConfig(min_pairs=10))
    bad, good = ({(f"p{p}", 0): value for p in range(9)} for value in (0.0, 1.0))
    assert gate.decide(bad, good).verdict == "continue"
    assert gate.decide({}, {}).verdict == "continue" and gate.decide({}, {}).effect == 0.0
    bad["p9", 0], good["p9", 0] = 0.0, 1.0
    assert gate.decide(bad, good).verdict == "accept"


def test_problems_count_with_all_their_seeds_only_and_unpaired_keys_do_not():
    config = GateConfig(seeds=2)
    current = {("a", 0): 0.0, ("a", 1): 0.5, ("b", 0): 0.0, ("c", 0): 1.0}
    candidate = {("a", 1): 1.0, ("a", 0): 1.0, ("b", 0): 1.0, ("d", 0): 1.0}
    assert problem_differences(current, candidate, config) == {"a": 0.75}
    decision = AcceptanceGate(config).decide(current, candidate)
    assert (decision.pairs, decision.effect) == (2, 0.75)


def test_more_seeds_than_announced_are_refused():
    pairs = {("a", seed): 1.0 for seed in range(3)}
    with pytest.raises(ValueError, match="'a' has 3 pairs, but seeds=1"):
        AcceptanceGate().decide(pairs, pairs)


@pytest.mark.parametrize("reward", [1.5, -0.1, math.nan, math.inf])
def test_rewards_out_of_range_are_refused_with_the_way_out(reward):
    with pytest.raises(ValueError, match=r"problem 'a', seed 0, is .* GateConfig"):
        AcceptanceGate().decide({("a", 0): reward}, {})


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"alpha": math.nan},
        {"margin": 1.0},
        {"low": 1.0},
        {"seeds": 0},
        {"look_every": 0},
        {"min_pairs": 0},
        {"min_pairs": 50, "max_pairs": 49},
        {"min_pairs": 1, "max_pairs": 2, "seeds": 3},
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        GateConfig(**settings)


KEYS = st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 1))
REWARDS = st.dictionaries(KEYS, st.floats(0, 1))


@settings(deadline=None, max_examples=60)
@given(REWARDS, REWARDS, st.randoms(use_true_random=False))
def test_decision_depends_on_the_pairs_and_not_on_their_order(current, candidate, rng):
    gate = AcceptanceGate(GateConfig(seeds=2, min_pairs=2))
    mixed = list(candidate.items())
    rng.shuffle(mixed)
    decision = gate.decide(current, candidate)
    assert gate.decide(current, dict(mixed)) == decision
    assert -1 <= decision.lower <= decision.effect <= decision.upper <= 1


@settings(deadline=None, max_examples=60)
@given(REWARDS, REWARDS)
def test_exchanging_the_libraries_turns_the_interval_round(current, candidate):
    gate = AcceptanceGate(GateConfig(seeds=2))
    one, other = gate.decide(current, candidate), gate.decide(candidate, current)
    assert (one.lower, one.upper) == pytest.approx((-other.upper, -other.lower), abs=1e-9)

"""Each rule on a run that is broken in its way, on healthy ones, and on the way there."""

import math
import random

import pytest

from trl_grpo_ext.evaluation import mean_interval
from trl_grpo_ext.health import RULES, History, findings, has_risen
from trl_grpo_ext.health.rules import reward_hacking

STEPS = 80


def run(steps=STEPS, **series):
    """A healthy run that learns, with some of its series replaced: functions of (step, generator)."""
    draws = random.Random(0)
    healthy = {
        "loss": lambda step, g: g.gauss(0, 0.01),
        "grad_norm": lambda step, g: g.uniform(0.2, 0.6),
        "reward": lambda step, g: min(0.9, 0.15 + 0.01 * step) + g.gauss(0, 0.04),
        "reward_std": lambda step, g: 0.4,
        "frac_reward_zero_std": lambda step, g: g.uniform(0.1, 0.5),
        "entropy": lambda step, g: max(0.1, 0.5 - 0.004 * step) + g.gauss(0, 0.01),
        "kl": lambda step, g: 0.002 * step,
        "clip_ratio/region_mean": lambda step, g: g.uniform(0, 0.05),
        "completions/clipped_ratio": lambda step, g: g.uniform(0, 0.1),
        "completions/mean_length": lambda step, g: 100 + 0.3 * step + g.gauss(0, 5),
        "health/reward_seconds": lambda step, g: 0.4,
        "health/reward_share": lambda step, g: 0.1,
    }
    entries = [
        {"step": step, **{name: make(step, draws) for name, make in (healthy | series).items()}}
        for step in range(1, steps + 1)
    ]
    return entries


def evaluations(values, every=10, half=0.05):
    return [
        {
            "step": every * place,
            "eval_m/avg@4": value,
            "eval_m/avg@4_low": value - half,
            "eval_m/avg@4_high": value + half,
        }
        for place, value in enumerate(values, 1)
    ]


def constant(value, noise=0.0):
    return lambda step, g: value + g.gauss(0, noise) if noise else value


FLAT = {"reward": lambda step, g: 0.3 - 0.001 * step + g.gauss(0, 0.04)}
BROKEN = {
    "not_finite": (run(loss=lambda step, g: math.nan if step == STEPS else 0.1), "loss is nan"),
    "reward_flat": (run(**FLAT), "no rise beyond noise"),
    "dead_groups": (run(frac_reward_zero_std=constant(0.9)), "90% of the groups"),
    "entropy_collapse": (run(entropy=lambda step, g: 0.6 * 0.9**step), "fell from 0."),
    "kl_divergence": (run(kl=lambda step, g: 0.05 * step), "nats per token"),
    "clipping": (run(**{"clip_ratio/region_mean": constant(0.4)}), "40% of the tokens"),
    "truncation": (run(40, **FLAT, **{"completions/clipped_ratio": constant(0.95)}), "95% of the completions"),
    "length_drift": (run(40, **FLAT, **{"completions/mean_length": lambda step, g: 100 + 8 * step}), "to 3"),
    "slow_reward": (
        run(**{"health/reward_seconds": constant(4.0), "health/reward_share": constant(0.8)}),
        "4.0 s a step",
    ),
    "reward_hacking": (run() + evaluations([0.3, 0.5, 0.6, 0.45, 0.4, 0.35, 0.3, 0.25]), "fell from 0.600 (step 30)"),
}


def test_there_is_a_broken_run_for_every_rule():
    assert set(BROKEN) == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize("name", BROKEN)
def test_a_rule_fires_on_its_run_and_no_other_does(name):
    entries, seen = BROKEN[name]
    (found,) = findings(History(entries))
    assert found.rule == name and seen in found.seen and found.change.endswith(".")


def test_a_healthy_run_is_left_alone_at_every_step():
    history = History([])
    for entry in run(200) + evaluations([0.3, 0.35, 0.5, 0.48, 0.6]):
        history.add(entry)
        assert findings(history) == []


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_rise_and_a_rise_is_found(seed):
    draws = random.Random(seed)
    slope = [0.01 * step + draws.gauss(0, 0.1) for step in range(60)]
    assert has_risen(slope)


def test_noise_is_taken_for_a_rise_rarely():
    rises = sum(has_risen(_noise(seed)) for seed in range(400))
    # One-sided, 2 standard errors with few values: about 3 %.
    assert rises / 400 < 0.06


def _noise(seed):
    draws = random.Random(seed)
    return [draws.gauss(0, 1) for _ in range(50)]


def test_easy_and_hard_are_told_apart():
    dead = {"frac_reward_zero_std": constant(0.95)}
    for series, word in (
        ({"reward": constant(0.99)}, "too easy"),
        ({"reward": constant(0.0)}, "too hard"),
        ({"reward": lambda step, g: min(2.0, step / 20)}, "too easy"),
        ({"reward": lambda step, g: -1.0 if step > 60 else 0.2}, "too hard"),
        ({"reward": constant(0.9), "groups/solved": constant(0.0), "groups/failed": constant(7.0)}, "too hard"),
        ({"reward": constant(0.1), "groups/solved": constant(7.0), "groups/failed": constant(0.0)}, "too easy"),
    ):
        found = {item.rule: item for item in findings(History(run(**dead, **series)))}
        assert word in found["dead_groups"].seen


def test_a_group_that_differs_does_not_make_failed_ones_easy():
    """As a real run had it: one completion of eight is right now and then, in the one group that has a spread."""
    shares, rewards = [1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 0.5, 0.5], [0, 1, 0, 0, 0, 0, 1, 0, 1, 1]
    steps = enumerate(zip(shares, rewards, strict=True), 1)
    entries = [{"step": n, "frac_reward_zero_std": dead, "reward": right / 8} for n, (dead, right) in steps]
    (found,) = findings(History(entries))
    assert found.rule == "dead_groups" and "too hard" in found.seen
    upside_down = [entry | {"reward": 1 - entry["reward"]} for entry in entries]
    assert "too easy" in findings(History(upside_down))[0].seen


def test_what_is_normal_does_not_fire():
    """Completions of a fixed length that learn; a reward that is slow in share only; an independent metric within noise."""
    for series in (
        {"completions/clipped_ratio": constant(1.0)},
        {"completions/mean_length": lambda step, g: 100 + 10 * step},
        {"health/reward_share": constant(0.9), "health/reward_seconds": constant(0.2)},
        {"entropy": constant(0.001)},
    ):
        assert findings(History(run(**series))) == []
    assert findings(History(run() + evaluations([0.3, 0.5, 0.47, 0.5, 0.46]))) == []
    # The independent metric falls, and so does the reward: that is no hacking.
    worse = run(reward=lambda step, g: 0.9 - 0.005 * step)
    assert "reward_hacking" not in {item.rule for item in findings(History(worse + evaluations([0.6, 0.4, 0.3])))}


def test_the_best_value_may_be_that_before_training():
    """`eval_on_start`: there is no training reward up to step 0, and the first one stands for it."""
    entries = [{"step": 0, "eval_m/avg@4": 0.9, "eval_m/avg@4_low": 0.85, "eval_m/avg@4_high": 0.95}, *run()]
    (found,) = findings(History(entries + evaluations([0.5, 0.4])))
    assert found.rule == "reward_hacking" and "(step 0)" in found.seen
    assert findings(History([entry for entry in entries if "reward" not in entry] + evaluations([0.5, 0.4]))) == []


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [("reward", math.inf, "infinity"), ("grad_norm", math.nan, "learning_rate"), ("loss", -math.inf, "learning_rate")],
)
def test_what_is_not_finite(name, value, word):
    """TRL 1.16 makes a loss of 0 of an infinite reward. NaN as the mean reward says that no row of the step has one."""
    (found,) = findings(History([*run(5), {"step": 6, name: value}]))
    assert found.rule == "not_finite" and found.seen.startswith(f"{name} is") and word in found.change
    assert findings(History([*run(5), {"step": 6, "reward": math.nan}])) == []


def test_a_history_that_grows_is_the_whole_one():
    entries = BROKEN["reward_hacking"][0] + [{"step": 99, "loss": math.nan, "name": "x", "flag": True}]
    grown = History()
    for entry in entries:
        grown.add(entry)
    whole = History(entries)
    assert findings(grown) == findings(whole) and "name" not in grown.names() and "flag" not in grown.names()
    assert math.isnan(grown.latest("loss")) and len(grown.values("loss")) == STEPS
    assert grown.mean_up_to("kl", 3, 2) == pytest.approx(0.005) and grown.mean_up_to("kl", 0, 2) is None
    assert grown.mean_up_to("kl", 1, 5) == pytest.approx(0.002) and grown.mean_up_to("none", 9, 2) is None
    assert [(point.step, point.value) for point in grown.points("kl")[:2]] == [(1, 0.002), (2, 0.004)]


def test_a_rule_that_is_known_is_not_asked():
    entries = BROKEN["clipping"][0]
    assert [item.rule for item in findings(History(entries))] == ["clipping"]
    assert findings(History(entries), {"clipping"}) == []


def standing_still(seed, problems=30, times=20):
    """Evaluations with one sample of each problem, by a model that does not change."""
    draws = random.Random(seed)
    chances = [draws.random() for _ in range(problems)]
    for _ in range(times):
        found = mean_interval([float(draws.random() < chance) for chance in chances])
        yield found.value, found.low, found.high


def test_the_noise_of_an_independent_metric_is_no_hacking():
    """The best of 20 evaluations is best by chance: the last value is below its interval in nearly every run."""
    below = 0
    for seed in range(20):
        found = list(standing_still(seed))
        entries = [
            {"step": 10 * place, "eval_m/avg@1": value, "eval_m/avg@1_low": low, "eval_m/avg@1_high": high}
            for place, (value, low, high) in enumerate(found, 1)
        ]
        best = max(found)
        below += any(value < best[1] for value, _, _ in found)
        for seen in range(3, len(entries) + 1):
            history = History([{"step": step, "reward": step / 200} for step in range(1, 201)] + entries[:seen])
            assert reward_hacking(history) is None
    assert below >= 10


def test_a_short_history_says_nothing():
    assert findings(History([])) == []
    assert (
        findings(History([{"step": 1, "reward": 0.0, "frac_reward_zero_std": 1.0, "train_runtime": 3, "name": "x"}]))
        == []
    )

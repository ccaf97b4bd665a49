"""Clip ranges over the course of training."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_grpo_ext.losses import ClipSchedule, LossConfig

annealed = st.sampled_from(["linear", "cosine"])


def test_constant_leaves_the_range_alone():
    config = LossConfig(epsilon=0.2, epsilon_high=0.28)
    schedule = ClipSchedule()
    schedule.observe(1.0)
    assert all(schedule.apply(config, progress) == config for progress in (0.0, 0.5, 1.0))


@settings(deadline=None)
@given(kind=annealed, final=st.floats(0.01, 5.0))
def test_annealed_schedules_start_at_one_and_end_at_the_final_factor(kind, final):
    schedule = ClipSchedule(kind, final_factor=final)
    assert schedule.factor(0.0) == pytest.approx(1.0)
    assert schedule.factor(0.5) == pytest.approx((1 + final) / 2)
    assert schedule.factor(1.0) == pytest.approx(final)
    assert schedule.factor(-1.0) == schedule.factor(0.0)
    assert schedule.factor(7.0) == schedule.factor(1.0)


@settings(deadline=None)
@given(kind=annealed, final=st.floats(0.01, 0.99), a=st.floats(0, 1), b=st.floats(0, 1))
def test_annealed_schedules_are_monotone(kind, final, a, b):
    schedule = ClipSchedule(kind, final_factor=final)
    early, late = sorted([a, b])
    assert schedule.factor(early) >= schedule.factor(late) - 1e-12


def test_quarter_points():
    assert ClipSchedule("linear", final_factor=0.2).factor(0.25) == pytest.approx(0.8)
    cosine = ClipSchedule("cosine", final_factor=0.2).factor(0.25)
    assert cosine == pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)


def test_apply_scales_both_ranges():
    schedule = ClipSchedule("linear", final_factor=0.5)
    scaled = schedule.apply(LossConfig(epsilon=0.2, epsilon_high=0.28), 1.0)
    assert (scaled.epsilon, scaled.epsilon_high) == pytest.approx((0.1, 0.14))
    assert schedule.apply(LossConfig(epsilon=0.2), 1.0).epsilon_high is None


def test_adaptive_comes_to_the_target():
    """A world where the clip fraction falls off with the range: exp(-range / 0.1)."""
    schedule = ClipSchedule("adaptive", target_fraction=0.05)
    config = LossConfig(epsilon=0.2)
    for _ in range(300):
        schedule.observe(math.exp(-schedule.apply(config, 0.0).epsilon / 0.1))
    assert math.exp(-schedule.apply(config, 0.0).epsilon / 0.1) == pytest.approx(0.05, rel=0.02)


@settings(deadline=None)
@given(fractions=st.lists(st.floats(0, 1), max_size=60))
def test_adaptive_widens_above_the_target_narrows_below_it_and_stays_in_its_bounds(fractions):
    schedule = ClipSchedule("adaptive", target_fraction=0.2, min_factor=0.5, max_factor=2.0)
    for fraction in fractions:
        before = schedule.factor(0.0)
        schedule.observe(fraction)
        after = schedule.factor(0.0)
        assert 0.5 <= after <= 2.0
        assert after >= before if fraction > 0.2 else after <= before
    schedule.observe(float("nan"))
    assert schedule.factor(0.0) == (after if fractions else 1.0)


@settings(deadline=None)
@given(fractions=st.lists(st.floats(0, 1), min_size=1, max_size=20), cut=st.integers(0, 20))
def test_state_goes_through_a_checkpoint(fractions, cut):
    def make():
        return ClipSchedule("adaptive", target_fraction=0.1)

    whole, first, second = make(), make(), make()
    for fraction in fractions:
        whole.observe(fraction)
    for fraction in fractions[:cut]:
        first.observe(fraction)
    second.load_state_dict(first.state_dict())
    for fraction in fractions[cut:]:
        second.observe(fraction)
    assert second.factor(0.0) == whole.factor(0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "step"}, "clip_schedule must be one of constant, linear, cosine, adaptive, not 'step'"),
        ({"kind": "linear"}, "clip_schedule 'linear' needs final_factor"),
        ({"kind": "adaptive"}, "clip_schedule 'adaptive' needs target_fraction"),
        ({"kind": "constant", "final_factor": 0.5}, "clip_schedule 'constant' does not read final_factor"),
        ({"kind": "cosine", "final_factor": 0.5, "target_fraction": 0.1}, "does not read target_fraction"),
        ({"kind": "linear", "final_factor": 0.0}, "final_factor must be a finite number above 0"),
        ({"kind": "adaptive", "target_fraction": 0.0}, "target_fraction must be a finite number above 0"),
        ({"kind": "adaptive", "target_fraction": 1.5}, "target_fraction must be"),
        ({"kind": "adaptive", "target_fraction": 0.1, "gain": 0.0}, "gain must be"),
        ({"kind": "adaptive", "target_fraction": 0.1, "min_factor": 0.0}, "min_factor must be"),
        ({"kind": "adaptive", "target_fraction": 0.1, "max_factor": 0.5}, "max_factor must be"),
    ],
)
def test_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ClipSchedule(**options)


@pytest.mark.parametrize("kind", ["soft", "none", "kl_cov"])
def test_a_loss_without_a_range_is_refused(kind):
    schedule = ClipSchedule("linear", final_factor=0.5)
    with pytest.raises(ValueError, match=f"clip_schedule 'linear' does nothing with clip_kind '{kind}'"):
        schedule.check(LossConfig(clip_kind=kind))
    ClipSchedule().check(LossConfig(clip_kind=kind))


def test_a_range_that_would_cross_delta_is_refused_before_the_training():
    config = LossConfig(clip_kind="dual", epsilon=0.2, delta=1.5)
    for schedule in (ClipSchedule("linear", final_factor=3.0), ClipSchedule("adaptive", target_fraction=0.1)):
        with pytest.raises(ValueError, match=r"past delta 1\.5 - 1: raise delta"):
            schedule.check(config)
    for final in (0.1, 2.0):
        schedule = ClipSchedule("cosine", final_factor=final)
        schedule.check(config)
        for progress in (0.0, 0.3, 1.0):
            schedule.apply(config, progress)

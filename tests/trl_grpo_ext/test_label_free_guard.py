"""The collapse guard: what it measures, when it acts, and that it does so in a real `GRPOTrainer.train()`."""

import logging
import math
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest

from trl_grpo_ext import exact_match
from trl_grpo_ext.rewards.label_free import CollapseDetector, CollapseGuard, SelfConsistencyReward

BATCH = 32


def sevens(completions, **kwargs):
    """Share of sevens: what the toy policy learns to please."""
    return [text.count("7") / max(len(text), 1) for text in completions]


def no_seven(completions, **kwargs):
    return [float("7" not in text) for text in completions]


def minus_sevens(completions, **kwargs):
    return [-share for share in sevens(completions)]


def observe(detector, pairs):
    return [detector.observe(pseudo, canary) for pseudo, canary in pairs]


def test_detector_acts_after_patience_alarms_in_a_row():
    detector = CollapseDetector(window=1, min_rise=0.1, min_drop=0.1, patience=2)
    assert observe(detector, [(0.5, 0.6), (0.7, 0.4), (0.7, 0.55), (0.8, 0.3), (0.8, 0.3)]) == [False] * 4 + [True]
    assert detector.best_canary == 0.6


@pytest.mark.parametrize(
    "pairs",
    [
        [(0.5, 0.6), (0.5, 0.3), (0.5, 0.3)],
        [(0.5, 0.6), (0.9, 0.6), (0.9, 0.55)],
        [(0.5, 0.3), (0.9, 0.6), (0.9, 0.9)],
        [(0.9, 0.6), (0.5, 0.1), (0.5, 0.1)],
    ],
    ids=["drop alone", "rise alone", "both rise", "both fall"],
)
def test_detector_needs_a_rise_and_a_drop(pairs):
    assert not any(observe(CollapseDetector(window=1, min_rise=0.1, min_drop=0.1, patience=1), pairs))


def test_detector_compares_means_of_full_windows():
    detector = CollapseDetector(window=4, patience=1)
    assert not any(observe(detector, [(0.1, 1), (0.1, 1), (0.1, 1)]))
    assert detector.best_canary is None
    assert observe(detector, [(0.1, 1), (0.5, 0.9), (0.5, 0.8)]) == [False, False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window"),
        ({"patience": 1.5}, "patience"),
        ({"min_rise": -1}, "min_rise"),
        ({"min_drop": 0}, "min_drop"),
    ],
)
def test_detector_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=f"collapse guard: {message} must be"):
        CollapseDetector(**settings)


def test_canary_rows_are_measured_and_not_taught():
    logged = {}
    guard = CollapseGuard(SelfConsistencyReward(), exact_match)
    call = {
        "completions": ["7", "7", "7", "8", "1", "1", "2", "3"],
        "prompts": ["p"] * 4 + ["q"] * 4,
        "canary": [True] * 4 + [False] * 4,
        "solution": ["8"] * 4 + [None] * 4,
    }
    assert guard(**call, log_metric=logged.__setitem__) == [None] * 4 + [1.0, 1.0, 0.0, 0.0]
    own = "guarded_self_consistency"
    assert guard.last_metrics == {
        "canary_accuracy": 0.25,
        "reward_accuracy": 0.0,
        f"{own}/pseudo_reward": 0.625,
        f"{own}/alarms": 0.0,
        f"{own}/collapsed": 0.0,
    }
    assert guard.last_metrics.items() <= logged.items()
    assert guard.pseudo_signal == 0.625
    taught = CollapseGuard(SelfConsistencyReward(), exact_match, train_on_canaries=True)
    assert taught(**{**call, "solution": ["7"] * 4 + [None] * 4}) == [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert taught.last_metrics["reward_accuracy"] == 1.0


def test_a_call_without_canaries_measures_nothing():
    guard = CollapseGuard(sevens, no_seven)
    assert guard(completions=["7", "1"], canary=[0, 0]) == [1.0, 0.0]
    assert guard.last_metrics == {}
    assert math.isnan(guard.pseudo_signal)


def drive(guard, steps=3):
    """A policy that pleases the reward more and more: first no seven, then all."""
    for share in (0, *[1] * steps):
        rewards = guard(completions=[str(7 * share or 1)] * 4, canary=[1, 1, 0, 0])
    return rewards


def test_policies(caplog):
    settings = {"window": 1, "patience": 2}
    with caplog.at_level(logging.WARNING):
        guard = CollapseGuard(sevens, no_seven, **settings)
        assert drive(guard) == [None, None, 1.0, 1.0]
    assert guard.collapsed
    assert ["may be collapsing" in m or "collapsed, policy 'warn'" in m for m in caplog.messages] == [True, True]
    guard = CollapseGuard(sevens, no_seven, policy="fallback", fallback=minus_sevens, **settings)
    assert drive(guard, steps=1) == [None, None, 1.0, 1.0]
    assert drive(guard, steps=2) == [None, None, -1.0, -1.0]
    assert pickle.loads(pickle.dumps(guard)).collapsed


def test_stop_without_the_callback_is_refused():
    guard = CollapseGuard(sevens, no_seven, policy="stop")
    state = SimpleNamespace(global_step=0, max_steps=10)
    with pytest.raises(RuntimeError, match=r"callbacks=\[guard.callback\(\)\]"):
        guard(completions=["7"], canary=[0], trainer_state=state)
    state.max_steps = 0
    assert guard(completions=["7"], canary=[0], trainer_state=state) == [1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "halt"}, "policy must be one of warn, stop, fallback, not 'halt'"),
        ({"policy": "fallback"}, "fallback is not given"),
        ({"fallback": sevens}, "policy is 'warn' and fallback is given"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CollapseGuard(sevens, no_seven, **settings)


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="must have the column 'canary'"):
        CollapseGuard(sevens, no_seven)(completions=["7"])
    with pytest.raises(ValueError, match="truth must score every canary row from 0 to 1"):
        CollapseGuard(no_seven, minus_sevens)(completions=["7"], canary=[True])


TWO_RANKS = """
import sys, torch.distributed as dist
from trl_grpo_ext.rewards.label_free import CollapseGuard
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
def value(completions, **kwargs):
    return [float(c) for c in completions]
guard = CollapseGuard(value, value)
# Rank 1 has no canary row of its own, yet both must decide on the same figures.
guard(completions=["1", "0"] if rank == 0 else ["0", "0"], canary=[rank == 0] * 2)
print(guard.last_metrics["canary_accuracy"], guard.pseudo_signal)
dist.destroy_process_group()
"""


def test_ranks_decide_on_the_same_figures(tmp_path, subprocess_environment):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(rank), str(tmp_path / "store")],
            env=subprocess_environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    assert [child.communicate(timeout=60)[0].split() for child in children] == [["0.5", "0.25"]] * 2


@pytest.fixture
def train(make_tiny_trainer):
    def run(guard, max_steps, **settings):
        rows = [{"prompt": f"say {'#' * i}", "canary": i % 2 == 0} for i in range(8)]
        sizes = {"per_device_train_batch_size": BATCH, "learning_rate": 2e-2, "max_completion_length": 3}
        trainer = make_tiny_trainer([guard], rows, max_steps, callbacks=[guard.callback()], **sizes | settings)
        trainer.train()
        return [entry for entry in trainer.state.log_history if "canary_accuracy" in entry], trainer.state

    return run


def test_the_guard_stops_a_run_whose_reward_rises_while_accuracy_falls(train):
    guard = CollapseGuard(sevens, no_seven, policy="stop", window=3, min_rise=0.1, min_drop=0.1, patience=2)
    logs, state = train(guard, 60)
    assert guard.collapsed
    assert 4 < state.global_step < 60
    assert logs[0]["canary_accuracy"] > logs[-1]["canary_accuracy"] + 0.1
    assert logs[-1]["guarded_sevens/pseudo_reward"] > logs[0]["guarded_sevens/pseudo_reward"] + 0.1
    assert [entry["guarded_sevens/collapsed"] for entry in logs] == [0.0] * (len(logs) - 1) + [1.0]
    assert len(logs) == state.global_step


def test_the_guard_falls_back_and_the_policy_recovers(train):
    guard = CollapseGuard(
        sevens, no_seven, policy="fallback", fallback=minus_sevens, window=3, min_rise=0.1, min_drop=0.1, patience=2
    )
    logs, state = train(guard, 50)
    assert state.global_step == 50
    turn = [entry["guarded_sevens/collapsed"] for entry in logs].index(1.0)
    accuracy = [entry["canary_accuracy"] for entry in logs]
    assert 0 < turn < 40
    assert sum(accuracy[-5:]) / 5 > sum(accuracy[turn - 2 : turn + 3]) / 5 + 0.2


def test_evaluation_is_not_measured_and_needs_no_marks(train):
    """Without marks in the evaluation data, and without a trace of it in the detector or the training log."""

    def run(**settings):
        guard = CollapseGuard(sevens, no_seven, window=1)
        measured = []
        guard.detector.observe = lambda pseudo, canary: measured.append((pseudo, canary)) or False
        return train(guard, 3, **settings)[0], measured, guard

    logs, measured, _ = run()
    eval_rows = [{"prompt": "# "}] * 4
    sizes = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8, "eval_on_start": True}
    watched, evaluated, guard = run(eval_rows=eval_rows, **sizes)
    assert len(measured) == len(evaluated) == len(watched) == 3
    assert [name for name in watched[0] if name.startswith("guarded")] == [
        n for n in logs[0] if n.startswith("guarded")
    ]
    assert guard.last_metrics["guarded_sevens/pseudo_reward"] == evaluated[-1][0]

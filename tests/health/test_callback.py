"""HealthCallback on real runs that are broken by design, and on one that is not."""

import json

import pytest

from tests.conformance.runs import assert_same, build_model, extended, logged, parameters, stock, trained, wordy
from trl_grpo_ext.health import HealthCallback

MAKE = {"stock": stock, "extended": extended}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("model"))


def rules(callback):
    return [item.rule for item in callback.findings]


def always(value):
    def reward(completions, **kwargs):
        return [value] * len(completions)

    return reward


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize(("value", "word"), [(1.0, "too easy"), (0.0, "too hard")])
def test_dead_groups_of_a_real_run(make, value, word, model, tmp_path):
    told = []
    callback = HealthCallback(told.append)
    trained(MAKE[make](model, tmp_path, callbacks=[callback], reward=always(value), max_steps=14))
    assert rules(callback) == ["dead_groups"] and told == callback.findings and word in told[0].seen
    (line,) = (tmp_path / "health.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 10, "rule": "dead_groups", "seen": told[0].seen, "change": told[0].change}


def test_a_slow_reward(model, tmp_path, monkeypatch):
    """By a clock that moves in the reward alone: how busy the machine is plays no part."""
    now = [0.0]

    def slow(completions, **kwargs):
        now[0] += 4.0
        return wordy(completions)

    monkeypatch.setattr("trl_grpo_ext.health.callback.perf_counter", lambda: now[0])
    callback = HealthCallback()
    trainer = trained(stock(model, tmp_path, callbacks=[callback], reward=slow, learning_rate=0.1, max_steps=6))
    assert rules(callback) == ["slow_reward"] and "4.0 s a step, 100%" in callback.findings[0].seen
    assert logged(trainer, "health/reward_seconds") == [4.0] * 6
    assert "_calculate_rewards" not in vars(trainer)


@pytest.mark.parametrize("make", MAKE)
def test_a_healthy_run_is_left_alone_and_trains_as_without_it(make, model, tmp_path):
    callback = HealthCallback()
    watched = trained(MAKE[make](model, tmp_path / "one", callbacks=[callback], learning_rate=0.3, max_steps=12))
    plain = trained(MAKE[make](model, tmp_path / "two", learning_rate=0.3, max_steps=12))
    assert rules(callback) == [] and not (tmp_path / "one" / "health.jsonl").exists()
    # Every entry of the log is taken, once.
    assert callback._history.values("reward") == logged(watched, "reward")
    assert_same(parameters(watched), parameters(plain), tolerance=0.0)


def test_a_rule_speaks_once_in_a_run_that_is_resumed(model, tmp_path):
    settings = {"reward": always(0.0), "save_strategy": "steps", "save_steps": 12, "max_steps": 16}
    trained(stock(model, tmp_path, callbacks=[HealthCallback()], **settings))
    callback = HealthCallback()
    trainer = stock(model, tmp_path, callbacks=[callback], **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert rules(callback) == [] and len((tmp_path / "health.jsonl").read_text().splitlines()) == 1
    # Also what was logged before the step that is resumed from.
    assert callback._history.values("reward") == [0.0] * 16
    again = HealthCallback()
    trained(stock(model, tmp_path, callbacks=[again], **settings))
    assert rules(again) == ["dead_groups"] and len((tmp_path / "health.jsonl").read_text().splitlines()) == 1


def test_findings_after_the_step_that_is_resumed_from_are_found_again(model, tmp_path):
    settings = {"reward": always(0.0), "save_strategy": "steps", "save_steps": 4, "max_steps": 11}
    trained(stock(model, tmp_path, callbacks=[HealthCallback()], **settings))
    with open(tmp_path / "health.jsonl", "a") as file:
        file.write('{"step": 3, "rule": "kept"}\n{"step": 11, "ru')
    trainer = stock(model, tmp_path, callbacks=[HealthCallback()], **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    lines = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert [(line["step"], line["rule"]) for line in lines] == [(3, "kept"), (10, "dead_groups")]


def test_another_trainer_is_refused():
    with pytest.raises(TypeError, match="needs a GRPOTrainer"):
        HealthCallback().attach(object())

"""`compose`: a composite out of plain data, and in a real `GRPOTrainer.train()`."""

import pickle

import pytest
import yaml

from trl_grpo_ext.rewards.composition import Linear, RewardMetricsCallback, compose

YAML = """
rewards:
  - {reward: tidy, name: format, weight: 0.5, schedule: {kind: linear, start: 1.0, end: 0.0}}
  - {reward: exact_match, name: correctness, normalisation: rank, missing: omit}
gates:
  - {component: format, opens: correctness}
total: standardise
name: mixed
"""


def tidy(completions, **kwargs):
    return [float(" " not in completion) for completion in completions]


def test_yaml_form():
    reward = compose(yaml.safe_load(YAML), known={"tidy": tidy})
    assert reward.__name__ == "mixed"
    assert reward.weights == {"format": 0.5, "correctness": 1.0}
    assert reward.schedules["format"] == Linear(1.0, 0.0)
    rewards = reward(completions=["7", "7 ", "1", "2"], prompts=["p"] * 4, solution=["7"] * 4)
    assert rewards[0] > rewards[2] == rewards[3] > rewards[1]
    assert pickle.loads(pickle.dumps(reward)).weights == reward.weights


def test_names_files_and_callables(tmp_path):
    (tmp_path / "r.py").write_text("def long(completions, **kwargs):\n    return [len(c) for c in completions]\n")
    reward = compose({"rewards": ["r.py:long", {"reward": tidy}]}, search_directory=tmp_path)
    assert reward(completions=["abc", "a c"]) == [4.0, 3.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": []}, "compose: unknown key 'reward', did you mean 'rewards'"),
        ({"rewards": "tidy"}, "rewards must be a list, not 'tidy'"),
        ({"rewards": ["exact_mach"]}, "Unknown reward 'exact_mach', did you mean 'exact_match'"),
        ({"rewards": ["tiddy"]}, "Unknown reward 'tiddy', did you mean 'tidy'"),
        ({"rewards": [{"name": "a"}]}, r"rewards\[0\]: the key 'reward' is missing"),
        ({"rewards": [{"reward": "tidy", "wieght": 1}]}, r"rewards\[0\]: unknown key 'wieght', did you mean 'weight'"),
        ({"rewards": ["tidy", "tidy"]}, r"rewards\[1\]: the name 'tidy' is taken"),
        ({"gates": [{"component": "tidy", "open": "x"}]}, r"gates\[0\]: unknown key 'open', did you mean 'opens'"),
        ({"gates": [{"component": "tydy", "opens": ["tidy"]}]}, "'tydy' is not a component, did you mean 'tidy'"),
    ],
)
def test_errors_name_the_place_and_the_way_out(change, message):
    with pytest.raises(ValueError, match=message):
        compose({"rewards": ["tidy"], **change}, known={"tidy": tidy})


def test_config_must_be_a_mapping():
    with pytest.raises(ValueError, match="compose must be a mapping"):
        compose(["tidy"])


def test_trains_and_shows_the_weights_of_each_step(make_tiny_trainer, tiny_model):
    reward = compose(yaml.safe_load(YAML), known={"tidy": tidy})
    before = tiny_model.lm_head.weight.detach().clone()
    rows = [{"prompt": "say ", "solution": "7"}] * 32
    callbacks = [RewardMetricsCallback(reward)]
    trainer = make_tiny_trainer([reward], rows, 4, callbacks=callbacks, per_device_train_batch_size=32)
    trainer.train()
    assert not tiny_model.lm_head.weight.equal(before)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = [0.5, 0.375, 0.25, 0.125]
    assert [entry["mixed/format/weight"] for entry in logs] == pytest.approx(weights)
    assert all({"mixed/correctness/mean", "mixed/correctness/gated"} <= set(entry) for entry in logs)

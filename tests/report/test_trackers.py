"""What is measured and watched reaches the trackers, by the Trainer's own integrations: nothing of ours talks to one.

A tracker that is not installed skips its test; what every integration is called with is tested everywhere.
"""

import json
import os

import pytest
from transformers import TrainerCallback

from tests.conformance.runs import build_model, stock
from trl_grpo_ext.evaluation import EvaluationCallback, Sampling
from trl_grpo_ext.health import HealthCallback
from trl_grpo_ext.report import ReportCallback

FIGURES = {f"eval_has_seven/{name}{end}" for name in ("avg@2", "pass@2", "pass^2") for end in ("", "_low", "_high")}
WATCHED = {"reward", "rewards/sevens/mean", "health/reward_seconds", "health/reward_share", "frac_reward_zero_std"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("model"))


def sevens(completions, **kwargs):
    return [float(text.count("7")) for text in completions]


def has_seven(completions, **kwargs):
    return [float("7" in text) for text in completions]


class Integration(TrainerCallback):
    """An integration of transformers is a callback, made before all others: this one keeps what it is told."""

    def __init__(self):
        self.told = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.told.append(dict(logs))


def train(model, folder, *callbacks, **settings):
    problems = [{"prompt": text} for text in ("say ", "1 ")]
    evaluation = EvaluationCallback(problems, [has_seven], Sampling(samples=2, max_new_tokens=3))
    own = [evaluation, HealthCallback(), ReportCallback(at_end=False)]
    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 8} | settings
    trainer = stock(model, folder, reward=sevens, callbacks=[*callbacks, *own], **settings)
    trainer.train()
    return trainer


def rewritten(names):
    """As transformers hands them to a tracker."""
    return {f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}" for name in names}


def test_every_integration_is_told(model, tmp_path):
    integration = Integration()
    train(model, tmp_path, integration)
    assert set().union(*integration.told) >= FIGURES | WATCHED
    for entry in integration.told:
        assert all(isinstance(value, int | float) for value in entry.values()), entry


def test_tensorboard(model, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Where transformers 5 looks; 4.57 has `logging_dir`, below the output folder by default.
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    trainer = train(model, tmp_path, report_to=["tensorboard"])
    (path,) = {file.parent for file in tmp_path.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(path)).Reload()
    assert set(events.Tags()["scalars"]) >= rewritten(FIGURES | WATCHED)
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert [event.value for event in events.Scalars("train/reward")] == pytest.approx(rewards)


def test_wandb_offline_with_a_table_of_completions(model, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    train(model, tmp_path, report_to=["wandb"], log_completions=True, num_completions_to_print=1)
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert set(summary) >= rewritten(FIGURES | WATCHED) | {"completions"}
    tables = [json.loads(path.read_text()) for path in tmp_path.rglob("media/table/*.table.json")]
    assert tables and {"prompt", "completion", "sevens", "advantage"} <= set(tables[0]["columns"])
    place = tables[0]["columns"].index("completion")
    assert all(row[tables[0]["columns"].index("sevens")] == row[place].count("7") for row in tables[0]["data"])


@pytest.mark.parametrize("tracker", ["swanlab", "trackio"])
def test_others_go_along(tracker, model, tmp_path, monkeypatch):
    """Offline and in a folder of the test; their figures are those of `test_every_integration_is_told`."""
    pytest.importorskip(tracker, reason=f"{tracker} is not installed")
    settings = {"SWANLAB_MODE": "offline", "SWANLAB_LOG_DIR": str(tmp_path), "TRACKIO_DIR": str(tmp_path)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    trainer = train(model, tmp_path / "run", report_to=[tracker], log_completions=tracker == "trackio")
    assert trainer.state.global_step == 2
    assert sum(len(files) for folder, _, files in os.walk(tmp_path) if str(tmp_path / "run") not in folder)

"""What is measured and watched reaches the trackers, by the Trainer's own integrations: nothing of ours talks to one.

A tracker that is not installed skips its test; what every integration is called with is tested everywhere.
"""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib.metadata import version

import pytest
from transformers import TrainerCallback

from tests.conformance.runs import build_model, stock
from tests.ranks import CHILD, REPOSITORY
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


def tracked(tracker, model, folder, begin="", end="", **settings):
    """Train in a process of its own, in `folder`: trackio reads where to write when it is first imported."""
    arguments = {"report_to": [tracker]} | settings
    lines = ["from pathlib import Path", "from tests.report.test_trackers import train", begin]
    lines += [f"trainer = train(Path({str(model)!r}), Path('run'), **{arguments!r})"]
    lines += ["trainer.state.save_to_json('state.json')", end]
    where = {"TRACKIO_DIR": str(folder / "trackio"), "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | CHILD | where, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_trackio_with_a_table_of_completions(model, tmp_path):
    pytest.importorskip("trackio", reason="trackio is not installed")
    tracked("trackio", model, tmp_path, log_completions=True)
    (database,) = (tmp_path / "trackio").glob("*.db")
    with closing(sqlite3.connect(database)) as connection:
        entries = [json.loads(text) for (text,) in connection.execute("select metrics from metrics order by id")]
    assert set().union(*entries) >= rewritten(FIGURES | WATCHED)
    history = json.loads((tmp_path / "state.json").read_text())["log_history"]
    sent = [entry["train/reward"] for entry in entries if "train/reward" in entry]
    assert sent == pytest.approx([entry["reward"] for entry in history if "reward" in entry])
    tables = [entry["completions"]["_value"] for entry in entries if "completions" in entry]
    # TRL 0.24 has the table for wandb only.
    assert bool(tables) == (int(version("trl").split(".")[0]) >= 1)
    assert all(row["sevens"] == row["completion"].count("7") for table in tables for row in table)


def test_swanlab_offline(model, tmp_path):
    """Its run is begun before the training: transformers 5.6 cannot begin one of swanlab 0.8 or later."""
    pytest.importorskip("swanlab", reason="swanlab is not installed")
    begin = "import swanlab; swanlab.init(project='tests', mode='offline')"
    tracked("swanlab", model, tmp_path, begin, "swanlab.finish()")
    (kept,) = (tmp_path / "swanlog").rglob("*.swanlab")
    seen = kept.read_bytes()
    assert [name for name in rewritten(FIGURES | WATCHED) if name.encode() not in seen] == []

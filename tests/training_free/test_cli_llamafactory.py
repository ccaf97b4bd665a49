"""20 GSM8K problems by `grpo-ext train-free` on a real `llamafactory-cli api`, killed in the middle, and resumed."""

import json
import os
import signal
import sqlite3
import time

import pytest
import yaml

pytest.importorskip("httpx")

from tests.training_free.command_runs import command
from tests.training_free.test_backend_llamafactory import KEY
from tests.training_free.test_endpoint_llamafactory import Server
from tests.training_free.tiny_models import SHARED, STORIES

GSM8K = SHARED / "data" / "gsm8k" / "train.jsonl"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.line_a,
    pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/models/stories260K is not here"),
    pytest.mark.skipif(not GSM8K.is_file(), reason="../shared/data/gsm8k is not here"),
]


def run_of(port):
    retry = {"attempts": 400, "base": 0.5, "cap": 1.0}
    return {
        "policy": {
            "base_url": f"http://127.0.0.1:{port}/v1",
            "model": "stories",
            "label": "stories",
            "api_key_env": "STORIES_KEY",
            "concurrency": 4,
            "retry": retry,
        },
        "dataset": {"path": str(GSM8K), "max_samples": 20, "columns": {"prompt": "question", "solution": "answer"}},
        "reward": "gsm8k_number",
        "config": {
            "num_generations": 2,
            "num_train_epochs": 2,
            "max_completion_length": 8,
            "max_reflection_length": 8,
        },
        "gate": {"min_pairs": 6, "max_pairs": 12},
        "output_dir": "out",
    }


def calls(folder):
    """Replies that the run has stored; the file is not there at first."""
    try:
        with sqlite3.connect(f"file:{folder / 'out' / 'run.db'}?mode=ro", uri=True) as database:
            return database.execute("SELECT count(*) FROM calls").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def wait_for(count, folder, process):
    end = time.monotonic() + 300
    while calls(folder) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{calls(folder)} of {count} calls"
        time.sleep(0.02)


def test_killed_server_ctrl_c_and_resume(tmp_path, monkeypatch):
    monkeypatch.setenv("STORIES_KEY", KEY)
    server = Server(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_of(server.port)))
    server.start()
    try:
        first = command("train-free", "run.yaml", folder=tmp_path)
        wait_for(10, tmp_path, first)
        server.kill()
        server.start()
        wait_for(36, tmp_path, first)
        os.kill(first.pid, signal.SIGINT)
        _, errors = first.communicate(timeout=60)
        stopped = calls(tmp_path)
        assert first.returncode == 130 and "the same command continues" in errors and KEY not in errors
        again = command("train-free", "run.yaml", folder=tmp_path)
        output, errors = again.communicate(timeout=300)
    finally:
        server.kill()
    assert again.returncode == 0, errors
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    print(output, f"stored at Ctrl-C: {stopped}; spent: {report['spent']}")
    assert server.starts == 2 and 36 <= stopped < 56
    assert report["status"] == "finished" and report["lessons"] == {}
    assert [step["rollouts"] for step in report["steps"]] == [28, 28] and not any(s["failed"] for s in report["steps"])
    assert (
        report["spent"]["calls"] == 56 + report["spent"]["failures"] == calls(tmp_path) + report["spent"]["failures"]
    )
    assert json.loads((tmp_path / "out" / "experiences.json").read_text("utf-8")) == {}
    assert KEY not in "".join(path.read_text("utf-8") for path in (tmp_path / "out").glob("*.[jm]*"))

"""A run of 20 GSM8K problems against a real `llamafactory-cli api` process, killed and started again in the middle."""

import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("httpx")

from tests.training_free.test_backend_llamafactory import KEY, free_port
from tests.training_free.test_endpoints import rows_of_gsm8k
from tests.training_free.tiny_models import REPOSITORY, STORIES
from trl_grpo_ext.training_free import GateConfig, TrainingFreeConfig, TrainingFreeGRPO
from trl_grpo_ext.training_free.backends import OpenAIBackend

pytestmark = [
    pytest.mark.slow,
    pytest.mark.line_a,
    pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/models/stories260K is not here"),
]


class Server:
    """The API server on one port; `start` does not wait for it, the backend's retries do."""

    def __init__(self, folder):
        self.port, self.folder, self.starts = free_port(), folder, 0

    def start(self):
        environment = os.environ | {"API_HOST": "127.0.0.1", "API_PORT": str(self.port), "API_KEY": KEY}
        environment |= {"API_VERBOSE": "0", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        command = [os.path.join(sys.prefix, "bin", "llamafactory-cli"), "api"]
        command += ["--model_name_or_path", str(STORIES), "--template", "default", "--infer_backend", "huggingface"]
        self.starts += 1
        with open(self.folder / f"log-{self.starts}", "wb") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def test_a_real_server_that_is_killed_and_comes_back(tmp_path):
    server = Server(tmp_path)
    server.start()
    config = TrainingFreeConfig(
        num_generations=2,
        num_train_epochs=2,
        max_completion_length=8,
        max_reflection_length=8,
        gate=GateConfig(min_pairs=6, max_pairs=12),
    )
    backend = OpenAIBackend(f"http://127.0.0.1:{server.port}/v1", "stories", KEY, concurrency=4, label="stories")
    rows, seen = rows_of_gsm8k(20), []

    def on_progress(progress):
        seen.append(progress.spent.calls)
        if len(seen) == 15:
            server.kill()
            server.start()
        if len(seen) == 40:
            raise KeyboardInterrupt

    try:
        with TrainingFreeGRPO(backend, config, output_dir=tmp_path / "run") as run:
            with pytest.raises(KeyboardInterrupt):
                run.train(rows, "math_equal", on_progress=on_progress)
            stopped = run.report.spent["calls"]
        with TrainingFreeGRPO(backend, config, output_dir=tmp_path / "run") as run:
            assert run.train(rows, "math_equal") == []
    finally:
        server.kill()
    assert server.starts == 2 and stopped >= 39
    assert run.report.status == "finished" and run.report.rewards == [0.0, 0.0]
    assert [step["rollouts"] for step in run.report.steps] == [28, 28]
    assert run.report.spent["calls"] == 56 + run.report.spent["failures"]

"""A real `llamafactory-cli api` process, serving a real model, as endpoint."""

import os
import signal
import socket
import subprocess
import sys

import pytest

pytest.importorskip("httpx")

from trl_grpo_ext.training_free.backends.openai_backend import OpenAIBackend
from trl_grpo_ext.training_free.backends.retry import RetryPolicy
from trl_grpo_ext.training_free.protocol import BackendError, ChatReply, ChatRequest

from .tiny_models import REPOSITORY, STORIES

KEY = "sk-of-the-test-0123456789"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.line_a,
    pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/models/stories260K is not here"),
]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def server(tmp_path):
    """The server's URL; it is starting, and nothing waits for it here: the backend's retries do."""
    port = free_port()
    environment = os.environ | {"API_HOST": "127.0.0.1", "API_PORT": str(port), "API_KEY": KEY, "API_VERBOSE": "0"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    command = [os.path.join(sys.prefix, "bin", "llamafactory-cli"), "api"]
    command += ["--model_name_or_path", str(STORIES), "--template", "default", "--infer_backend", "huggingface"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(backend, *requests):
    found = {}
    backend.complete(requests, found.__setitem__)
    return [found[index] for index in range(len(requests))]


def test_server_that_is_still_starting_answers_in_the_end(server):
    patient = RetryPolicy(attempts=400, base=0.5, cap=1.0)
    backend = OpenAIBackend(server, "stories", KEY, concurrency=4, retry=patient)
    requests = [
        ChatRequest((("system", "tell"), ("user", "Once upon a time")), temperature=0.7, max_tokens=8),
        ChatRequest((("user", "Lily"),), temperature=0.0, max_tokens=3),
        ChatRequest((("user", "a"), ("user", "b")), max_tokens=3),
    ]
    first, second, third = ask(backend, *requests)
    assert isinstance(first, ChatReply) and first.text and 0 < first.completion_tokens <= 8
    assert isinstance(second, ChatReply) and second.completion_tokens <= 3 and second.prompt_tokens > 3
    assert isinstance(third, BackendError) and not third.retryable and "u/a/u/a/u" in str(third)
    wrong = ask(OpenAIBackend(server, "stories", KEY + "x", retry=RetryPolicy(attempts=1)), requests[0])[0]
    assert isinstance(wrong, BackendError) and "Invalid API key" in str(wrong) and KEY not in str(wrong)

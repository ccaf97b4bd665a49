"""What ends the OpenAI-compatible backend's work: an exception of the caller, Ctrl-C."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("httpx")

from trl_grpo_ext.training_free.backends.openai_backend import OpenAIBackend

from .endpoint_requests import FAST, ask, request
from .http_server import Answer, completion, echo, serving

REPOSITORY = Path(__file__).resolve().parents[2]


class Enough(Exception):
    pass


@pytest.mark.parametrize("stop", [Enough, KeyboardInterrupt])
def test_what_on_reply_raises_cancels_the_rest_and_is_raised(stop):
    def answer(body):
        return Answer(body=completion(), delay=0.0 if body["messages"][-1]["content"] == "0" else 5.0)

    def on_reply(index, reply):
        raise stop

    with serving(answer) as endpoint:
        backend = OpenAIBackend(endpoint.url, "m", concurrency=3, retry=FAST)
        with pytest.raises(stop):
            backend.complete([request(str(n)) for n in range(40)], on_reply)
        assert len(endpoint.requests) <= 4
        names = [thread.name for thread in threading.enumerate()]
    assert not any("_Worker" in name for name in names)


WAITING = """
import signal, sys
from trl_grpo_ext.training_free.backends.openai_backend import OpenAIBackend
from trl_grpo_ext.training_free.protocol import ChatRequest

# A process that a shell has started in the background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    OpenAIBackend(sys.argv[1], "m").complete([ChatRequest((("user", "hi"),))], print)
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_real_interrupt_while_waiting_for_an_answer():
    asked = threading.Event()

    def answer(body):
        asked.set()
        return Answer(body=completion(), delay=30.0)

    with serving(answer) as endpoint:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen([sys.executable, "-c", WAITING, endpoint.url], env=environment)
        try:
            assert asked.wait(timeout=60)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 7
        finally:
            process.kill()
            process.wait()


def test_works_where_an_event_loop_is_running():
    async def notebook(endpoint):
        return ask(endpoint, request("cell"))

    with serving(echo) as endpoint:
        assert asyncio.run(notebook(endpoint))[0].text == "cell"

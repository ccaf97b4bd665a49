"""The proxy as it is used: the command as a process, the official client, the log."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import httpx

from ..training_free.http_server import Answer, completion, error, serving
from .proxies import (
    ASKED,
    BLOCK,
    CLIENT_KEY,
    DONE,
    GOOD,
    HEADERS,
    UPSTREAM_KEY,
    event,
    post,
    proxy,
    stream,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def test_keys_and_texts_are_in_no_log(library, caplog):
    caplog.set_level(logging.DEBUG)
    secret = {"model": "m", "messages": [{"role": "user", "content": "my diary"}]}
    answers = iter([GOOD, Answer(401, error(UPSTREAM_KEY)), stream(event("a"), drop=True)])
    with serving(lambda body: next(answers)) as upstream, proxy(upstream.url, library) as url:
        for data in (secret, secret, {**secret, "stream": True}):
            post(url, data, params={"key": "in-the-query"})
        post(url, secret, {"Authorization": "Bearer sk-wrong-key"})
    logged = [record.getMessage() for record in caplog.records if record.name.startswith(("trl_grpo_ext", "uvicorn"))]
    assert any("POST /v1/chat/completions 401" in text for text in logged)
    assert not any(word in text for word in ("diary", "sk-", "in-the-query", "add first") for text in logged)
    everything = caplog.text
    assert UPSTREAM_KEY not in everything and CLIENT_KEY not in everything


def test_command_serves_until_it_is_interrupted(library, tmp_path):
    """A real process, its keys from the environment and in nothing that it prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"CLIENT": CLIENT_KEY, "UPSTREAM": UPSTREAM_KEY, "PYTHONPATH": str(REPOSITORY)}
    with serving(lambda body: GOOD) as upstream, open(tmp_path / "log", "w+b") as log:
        command = [
            sys.executable,
            "-c",
            "import sys; from trl_grpo_ext.cli.serve import main; sys.exit(main(sys.argv[1:]))",
        ]
        command += ["--upstream", upstream.url, "--library", str(library), "--port", str(port)]
        command += ["--api-key-env", "CLIENT", "--upstream-key-env", "UPSTREAM"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            transport = httpx.HTTPTransport(retries=0)
            with httpx.Client(transport=transport, headers=HEADERS) as client:
                response = answered(client, f"http://127.0.0.1:{port}/v1/chat/completions", process)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        printed = log.read().decode()
    assert response.json() == completion("4") and upstream.requests[0]["messages"][0]["content"] == BLOCK
    assert "POST /v1/chat/completions 200" in printed and "sk-" not in printed and "2+2" not in printed


def answered(client, url, process):
    """The answer of a server that is starting."""
    while process.poll() is None:
        try:
            return client.post(url, json=ASKED)
        except httpx.ConnectError:
            time.sleep(0.1)
    raise AssertionError("the server has ended")


def test_official_client(library):
    openai = pytest.importorskip("openai", reason="the openai client is not installed")
    whole = {**completion("4"), "id": "c", "object": "chat.completion", "created": 0, "model": "m"}
    whole["choices"][0]["index"] = 0
    answers = {False: Answer(body=whole), True: stream(event("4"), event("", "stop"), DONE)}
    with (
        serving(lambda body: answers[bool(body.get("stream"))]) as upstream,
        proxy(upstream.url, library, max_body_bytes=100_000) as url,
    ):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=CLIENT_KEY, max_retries=0)
        ask = {"model": "m", "messages": ASKED["messages"]}
        assert client.chat.completions.create(**ask).choices[0].message.content == "4"
        chunks = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**ask, stream=True)]
        assert chunks == ["4", ""]
        answers[True] = stream(event("4"), 'data: {"cho', drop=True)
        with pytest.raises(openai.APIError, match="broke off") as caught:
            list(client.chat.completions.create(**ask, stream=True))
        assert caught.value.code == "upstream_broke_off"
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            client.with_options(api_key="wrong").chat.completions.create(**ask)
        with pytest.raises(openai.APIStatusError, match="larger than 100000 bytes") as caught:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * 200_000}])
        assert caught.value.status_code == 413
        answers[False] = Answer(drop=True)
        with pytest.raises(openai.InternalServerError, match="broke off"):
            client.chat.completions.create(**ask)
    assert all(item["messages"][0] == {"role": "system", "content": BLOCK} for item in upstream.requests)

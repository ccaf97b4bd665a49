"""A planted key is in nothing that a run prints, logs, saves or raises."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trl_grpo_ext.rewards import JudgeReward, Service, ServiceError

TOKEN, QUERY, HEADER = "planted-token-4f1c9a", "planted-query-77ab31", "planted-header-90ee12"
PLANTED = (TOKEN, QUERY, HEADER)


class Judge(BaseHTTPRequestHandler):
    """Every second answer is an error that repeats what it was sent: a careless server."""

    asked = 0

    def log_message(self, *_: Any) -> None:
        return None

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Authorization"] == f"Bearer {TOKEN}" and QUERY in self.path
        Judge.asked += 1
        good = {"choices": [{"message": {"content": "Fine.\nScore: 7"}}]}
        sent = f"401 for {self.headers['Authorization']} {self.headers['X-Key']}"
        body = json.dumps(good) if Judge.asked % 2 else sent
        self.send_response(200 if Judge.asked % 2 else 400)
        self.end_headers()
        self.wfile.write(body.encode())


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("PLANTED_KEY", TOKEN)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1/chat/completions?key={QUERY}"
    yield Service(url, retries=0, headers={"X-Key": HEADER}, token_variable="PLANTED_KEY")
    server.shutdown()
    server.server_close()


def assert_absent(text: str) -> None:
    assert text.strip()
    assert not [secret for secret in PLANTED if secret in text]


@pytest.mark.parametrize("error", ["status", "connection"])
def test_errors_of_a_service(service: Service, error: str) -> None:
    if error == "connection":
        service = Service(f"http://127.0.0.1:9/?key={QUERY}", retries=0, token_variable="PLANTED_KEY")
    Judge.asked = 1  # the next answer is the bad one
    with pytest.raises(ServiceError) as caught:
        service.post({})
    assert_absent(str(caught.value))
    # Nor in the traceback that a log would show.
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert_absent(repr(service))


@pytest.mark.parametrize("url", ["http://user:planted-query-77ab31@host/", "user:planted-query-77ab31@host/v1"])
def test_a_password_in_a_url_is_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="must not hold a user name or password") as caught:
        Service(url)
    assert_absent(str(caught.value))


def saved(folder: Path) -> bytes:
    """Every byte of every file, and every name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 8
    return b"\n".join(str(path).encode() + b"\n" + path.read_bytes() for path in files)


def test_a_whole_run(service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Judge with a key, live view, report, health, library and checkpoint of a real run."""
    from tests.security.runs import train

    caplog.set_level(logging.DEBUG)
    shown = io.StringIO()
    judge = JudgeReward(service, "judge", on_error="skip")
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        history = train(tmp_path / "out", [judge], stream=shown)
    assert Judge.asked > 4 and any("rewards/judge/mean" in entry for entry in history)
    assert_absent(shown.getvalue() + caplog.text)
    found = saved(tmp_path / "out")
    assert b"rewards/judge/mean" in found
    assert not [secret for secret in PLANTED if secret.encode() in found]


def test_keys_of_llamafactory(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Tokens and `*_api_key` of LLaMA-Factory's own YAML keys are not in the output folder, nor printed."""
    pytest.importorskip("llamafactory", reason="needs LLaMA-Factory (line A)")
    from tests.llamafactory_plugin.conftest import Workspace
    from tests.llamafactory_plugin.tiny import build_model

    workspace = Workspace(tmp_path, build_model(tmp_path / "model"))
    keys = {"hf_hub_token": TOKEN, "swanlab_api_key": QUERY, "ms_hub_token": HEADER}
    workspace.run(max_steps=1, save_strategy="steps", save_steps=1, grpo_disable_report=False, **keys)
    found = saved(workspace.output)
    assert not [secret for secret in PLANTED if secret.encode() in found]
    assert not [secret for secret in PLANTED if secret in "".join(capfd.readouterr())]

"""Keys that are sent and never shown, names, and settings that cannot work."""

import logging

import pytest

pytest.importorskip("httpx")

from trl_grpo_ext.training_free.backends.openai_backend import OpenAIBackend

from .endpoint_requests import FAST, KEY, ask, in_turn, request
from .http_server import Answer, echo, error, serving


def test_key_is_in_no_error_no_repr_and_no_log(caplog):
    caplog.set_level(logging.DEBUG)
    body = error(f"Incorrect API key provided: {KEY}")
    with serving(in_turn(Answer(500, body), Answer(401, body))) as endpoint:
        backend = OpenAIBackend(endpoint.url, "m", KEY, retry=FAST)
        answers = []
        backend.complete([request()], lambda index, answer: answers.append(answer))
    shown = [str(answers[0]), repr(answers[0]), repr(backend), str(vars(backend)), backend.name, caplog.text]
    assert "***" in str(answers[0]) and len(endpoint.requests) == 2 and "HTTP Request" in caplog.text
    assert not any(KEY in text for text in shown)


@pytest.mark.parametrize("key", ["", "two words", "newline\nX-Evil: 1", "schlüssel"])
def test_key_that_cannot_be_sent_is_refused_without_being_shown(key):
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        OpenAIBackend("http://127.0.0.1:1/v1", "m", key)
    assert not key or key not in str(caught.value)


def test_key_from_the_environment(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY + "\n")
    with serving(echo) as endpoint:
        ask(endpoint, request(), api_key_env="SOME_KEY")
    assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"
    with pytest.raises(ValueError, match="no such environment variable"):
        OpenAIBackend("http://127.0.0.1:1/v1", "m", api_key_env="NO_SUCH_KEY")
    with pytest.raises(ValueError, match="both given"):
        OpenAIBackend("http://127.0.0.1:1/v1", "m", KEY, api_key_env="SOME_KEY")


def test_name_tells_apart_what_answers_differently_and_nothing_else():
    def name(url="http://h/v1", model="m", **settings):
        return OpenAIBackend(url, model, **settings).name

    assert len({name(), name("http://other/v1"), name(model="n"), name(extra_body={"top_p": 0.5})}) == 4
    assert name() == name("http://h/v1/", api_key=KEY, concurrency=3, timeout=5.0)
    assert name(label="ours") == name("http://other/v1", label="ours") != name()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"base_url": "127.0.0.1:8000"}, "base_url must be like"),
        ({"base_url": "http://"}, "base_url must be like"),
        ({"base_url": f"http://u:{KEY}@h/v1"}, "no user, password"),
        ({"base_url": f"http://h/v1?key={KEY}"}, "no user, password"),
        ({"base_url": f"h/v1?key={KEY}"}, "no user, password"),
        ({"base_url": f"u:{KEY}@h/v1"}, "no user, password"),
        ({"base_url": "http://h/v1/chat/completions"}, "ends before"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"timeout": 0.0}, "timeout must be"),
        ({"limit_field": "tokens"}, "limit_field must be one of"),
        ({"extra_body": {"temperature": 0.0}}, "extra_body may not hold temperature"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        OpenAIBackend(**{"base_url": "http://h/v1", "model": "m", **settings})
    assert KEY not in str(caught.value)

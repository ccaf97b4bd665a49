"""Streams through the proxy, and upstreams that die: each a defined answer."""

import json
import time

import pytest

pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import httpx

from ..training_free.http_server import Answer, completion, serving
from .proxies import (
    ASKED,
    DONE,
    HEADERS,
    code,
    event,
    post,
    proxy,
    stream,
)


def test_stream_is_passed_on_event_by_event(library):
    sent = [event("a"), event("b", "stop"), DONE]
    ask = {"json": {**ASKED, "stream": True}, "headers": HEADERS}
    with (
        serving(lambda body: stream(*sent, drip=0.001)) as upstream,
        proxy(upstream.url, library) as url,
        httpx.stream("POST", url + "/v1/chat/completions", **ask) as got,
    ):
        parts = list(got.iter_text())
    assert got.headers["content-type"].startswith("text/event-stream") and "".join(parts) == "".join(sent)
    assert len(parts) > 1 and all(part.endswith("\n\n") for part in parts)


def test_client_that_goes_away_in_a_stream_ends_it_upstream_too(library):
    endless = stream(*[event("a")] * 2000, drip=0.0005)
    with serving(lambda body: endless) as upstream, proxy(upstream.url, library) as url:
        with httpx.stream(
            "POST", url + "/v1/chat/completions", json={**ASKED, "stream": True}, headers=HEADERS
        ) as got:
            next(got.iter_text())
        for _ in range(200):
            if upstream.lost:
                break
            time.sleep(0.05)
        assert upstream.lost == 1


@pytest.mark.parametrize("drop", [True, False], ids=["connection lost", "stream ended early"])
def test_upstream_that_dies_in_a_stream_ends_it_with_an_error_event(library, drop):
    with (
        serving(lambda body: stream(event("a"), 'data: {"cho', drop=drop)) as upstream,
        proxy(upstream.url, library) as url,
    ):
        response = post(url, {**ASKED, "stream": True})
    first, last, end = response.text.split("\n\n")
    assert response.status_code == 200 and first + "\n\n" == event("a") and end == ""
    found = json.loads(last.removeprefix("data: "))["error"]
    assert found["code"] == "upstream_broke_off" and found["type"] == "upstream_error"


@pytest.mark.parametrize("streaming", [False, True])
def test_upstream_that_is_not_there_or_breaks_off(library, streaming):
    data = {**ASKED, "stream": streaming}
    with serving(lambda body: Answer(drop=True)) as upstream, proxy(upstream.url, library) as url:
        assert code(post(url, data)) == (502, "upstream_broke_off")
        broken = Answer(body=completion(), drop=True)
        upstream.answer = lambda body: broken
        assert code(post(url, data)) == (502, "upstream_broke_off")
    with proxy(upstream.url, library) as url:
        assert code(post(url, data)) == (502, "upstream_unreachable")


def test_slow_upstream_is_given_up(library):
    slow = Answer(body=completion(), delay=1.0)
    with serving(lambda body: slow) as upstream, proxy(upstream.url, library, timeout=0.2) as url:
        assert code(post(url)) == (504, "upstream_timeout")

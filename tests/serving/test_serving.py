"""The proxy over real HTTP: lessons added, keys checked and hidden, bad requests a defined answer."""

import os
import shutil

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
    GOOD,
    HEADERS,
    UPSTREAM_KEY,
    code,
    make_library,
    post,
    proxy,
)


def test_lessons_are_added_and_the_rest_is_passed_on_both_ways(library):
    rich = {**ASKED, "temperature": 0.3, "tools": [{"type": "function"}], "user": "é"}
    answer = Answer(body=completion("4"), headers={"x-ratelimit-remaining-tokens": "5", "Set-Cookie": "a=b"})
    with serving(lambda body: answer) as upstream, proxy(upstream.url, library) as url:
        response = post(url, rich, {**HEADERS, "OpenAI-Organization": "us", "X-Other": "no"})
    assert response.status_code == 200 and response.json() == completion("4")
    assert response.headers["x-ratelimit-remaining-tokens"] == "5" and "set-cookie" not in response.headers
    assert response.headers["x-experience-lessons"] == "2"
    assert upstream.requests == [{**rich, "messages": [{"role": "system", "content": BLOCK}, *ASKED["messages"]]}]
    assert upstream.paths == ["/v1/chat/completions"]
    assert upstream.headers[0]["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert upstream.headers[0]["openai-organization"] == "us" and "x-other" not in upstream.headers[0]


def test_error_of_the_upstream_is_passed_on_without_its_key(library):
    refused = Answer(401, error(f"Incorrect API key provided: {UPSTREAM_KEY}"), {"Retry-After": "7"})
    with serving(lambda body: refused) as upstream, proxy(upstream.url, library) as url:
        for data in (ASKED, {**ASKED, "stream": True}):
            response = post(url, data)
            assert response.status_code == 401 and response.json() == error("Incorrect API key provided: ***")
            assert response.headers["retry-after"] == "7"


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": CLIENT_KEY}])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/domains/math/v1/chat/completions"])
def test_wrong_key_is_refused_and_reaches_nobody(library, headers, path):
    with serving(lambda body: GOOD) as upstream, proxy(upstream.url, library) as url:
        assert code(post(url, headers=headers, path=path)) == (401, "invalid_api_key")
        assert code(httpx.get(url + "/v1/models", headers=headers)) == (401, "invalid_api_key")
    assert upstream.requests == []


def test_without_keys_of_its_own_the_proxy_passes_the_clients_key_on(library):
    with serving(lambda body: GOOD) as upstream:
        with proxy(upstream.url, library, client_key=None, upstream_key=None) as url:
            assert post(url, headers={"Authorization": "Bearer theirs"}).status_code == 200
        with proxy(upstream.url, library, upstream_key=None) as url:
            assert post(url).status_code == 200
    assert upstream.headers[0]["authorization"] == "Bearer theirs"
    # The key of the proxy is nobody else's business.
    assert not any(name.lower() == "authorization" for name in upstream.headers[1])


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [3000, 3 * 2**20])
def test_oversized_body_is_refused(library, size, chunked):
    with serving(lambda body: GOOD) as upstream, proxy(upstream.url, library, max_body_bytes=2000) as url:
        body = b" " * size
        content = iter([body[:1000], body[1000:]]) if chunked else body
        assert code(post(url, content=content)) == (413, "request_too_large")
        assert post(url).status_code == 200
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"{", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"\xff", "invalid_json"),
        (b'{"messages": NaN}', "invalid_json"),
        (b"[]", "invalid_messages"),
        (b"{}", "invalid_messages"),
        (b'{"messages": []}', "invalid_messages"),
        (b'{"messages": ["hi"]}', "invalid_messages"),
        (b'{"messages": [{"content": "hi"}]}', "invalid_messages"),
        (b'{"messages": [{"role": "system", "content": 5}]}', "invalid_messages"),
    ],
)
def test_malformed_requests_are_refused(library, content, expected):
    with serving(lambda body: GOOD) as upstream, proxy(upstream.url, library) as url:
        assert code(post(url, content=content)) == (400, expected)
    assert upstream.requests == []


def test_other_addresses_and_methods(library):
    with serving(lambda body: Answer(body={"data": []})) as upstream, proxy(upstream.url, library) as url:
        assert code(post(url, path="/v1/embeddings")) == (404, "unknown_url")
        assert code(httpx.get(url + "/v1/chat/completions")) == (405, "unknown_url")
        assert httpx.get(url + "/v1/models", headers=HEADERS).json() == {"data": []}
        assert httpx.get(url + "/health").json() == {"status": "ok", "stale": []}
    assert upstream.paths == ["/v1/models"]


def test_domains_have_lessons_of_their_own_and_are_swapped_while_serving(tmp_path):
    both = make_library(tmp_path / "both.db", "about x", domain="math")
    make_library(both, "about clicks", domain="web")
    code_library = make_library(tmp_path / "code.db", "read the error")
    with serving(lambda body: GOOD) as upstream, proxy(upstream.url, both, {"code": code_library}) as url:

        def seen(domain):
            path = f"/domains/{domain}/v1/chat/completions" if domain else "/v1/chat/completions"
            assert post(url, path=path).status_code == 200
            found = upstream.requests[-1]["messages"]
            return [line.split(". ", 1)[1] for line in found[0]["content"].split("\n")[1:]] if len(found) > 1 else []

        assert [seen(name) for name in ("math", "web", "code")] == [["about x"], ["about clicks"], ["read the error"]]
        assert seen("") == ["about x", "about clicks"]
        make_library(both, "about y", domain="math")
        assert seen("math") == ["about x", "about y"] and seen("web") == ["about clicks"]
        # Another file in its place, as an atomic export does.
        os.replace(make_library(tmp_path / "new.db", "read it twice"), code_library)
        assert seen("code") == ["read it twice"]
        assert code(post(url, path="/domains/cooking/v1/chat/completions")) == (404, "unknown_domain")
        # A damaged library: what was read before is served on, and said to be stale, until it is whole again.
        shutil.copy(code_library, tmp_path / "good.db")
        code_library.write_bytes(b"no library" * 1000)
        assert seen("code") == ["read it twice"]
        assert httpx.get(url + "/health").json() == {"status": "stale", "stale": ["code"]}
        os.replace(tmp_path / "good.db", code_library)
        assert seen("code") == ["read it twice"] and httpx.get(url + "/health").json()["status"] == "ok"


def test_lessons_committed_by_an_open_library_are_seen_at_once(tmp_path):
    """The writer keeps its journal: the library's own file does not change."""
    from trl_grpo_ext.experience import ExperienceLibrary, Lesson

    path = make_library(tmp_path / "library.db", "lesson 0")
    with ExperienceLibrary(path) as writer, serving(lambda body: GOOD) as upstream, proxy(upstream.url, path) as url:
        for count in range(1, 6):
            writer.add(Lesson(f"lesson {count}"))
            assert post(url).headers["x-experience-lessons"] == str(count + 1)

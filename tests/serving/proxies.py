"""The proxy on a real port, in a thread."""

import json
import threading
import time
from contextlib import contextmanager

from trl_grpo_ext._secrets import Secret
from trl_grpo_ext.experience import ExperienceLibrary, Lesson
from trl_grpo_ext.serving import Libraries, ServeSettings

from ..training_free.http_server import Answer, completion

CLIENT_KEY, UPSTREAM_KEY = "sk-client-0123456789", "sk-upstream-9876543210"
HEADERS = {"Authorization": f"Bearer {CLIENT_KEY}"}
GOOD = Answer(body=completion("4"))
ASKED = {"model": "m", "messages": [{"role": "user", "content": "2+2?"}]}
BLOCK = "Lessons from earlier attempts; use those that fit:\n[G0]. add first\n[G1]. check the sign"


def make_library(path, *texts, domain=None):
    """A library file with lessons; several calls add to it."""
    with ExperienceLibrary(path) as library:
        metadata = {"domain": domain} if domain else {}
        library.add(*(Lesson(text, metadata=metadata) for text in texts))
    return path


@contextmanager
def proxy(upstream, library, domains=None, client_key=CLIENT_KEY, upstream_key=UPSTREAM_KEY, **settings):
    """Serve in front of an upstream until the end of the block; gives the base URL without /v1."""
    import uvicorn

    from trl_grpo_ext.serving import create_app

    keys = [Secret(key) if key else None for key in (upstream_key, client_key)]
    app = create_app(ServeSettings(upstream, *keys, **settings), Libraries(library, domains))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def event(text, finish=None):
    """One chunk of a streamed completion."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n"


DONE = "data: [DONE]\n\n"


def stream(*events, **settings):
    """A streamed answer of the upstream."""
    return Answer(body="".join(events), headers={"Content-Type": "text/event-stream"}, **settings)


def post(url, data=None, headers=HEADERS, path="/v1/chat/completions", **given):
    import httpx

    content = given.pop("content", json.dumps(ASKED if data is None else data))
    return httpx.post(url + path, content=content, headers=headers, timeout=20, **given)


def code(response):
    """The status and code of an error, which has OpenAI's form."""
    found = response.json()["error"]
    assert isinstance(found["message"], str) and found["type"]
    return response.status_code, found["code"]

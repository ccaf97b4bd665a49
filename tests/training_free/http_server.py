"""A real HTTP server on loopback whose answers are written down: an OpenAI-compatible endpoint with bad days."""

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    """What the server does with one request."""

    status: int = 200
    body: bytes | str | dict = b""
    headers: dict = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False
    drip: float = 0.0


def completion(text="hello", finish="stop", usage=(7, 3)):
    """The body of a chat completion."""
    body = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
    return {**body, "usage": dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))} if usage else body


def error(message, code=None):
    """The body of an error of OpenAI."""
    return {"error": {"message": message, "code": code}}


def echo(request):
    """Answer with the last message."""
    return Answer(body=completion(request["messages"][-1]["content"]))


@dataclass
class Endpoint:
    """The server's record of what it has seen."""

    answer: object
    url: str = ""
    requests: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    paths: list = field(default_factory=list)
    times: list = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    lost: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, path, headers, body):
        with self.lock:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            self.requests.append(body)
            self.paths.append(path)
            self.headers.append(headers)
            self.times.append(time.monotonic())

    def end(self):
        with self.lock:
            self.under_way -= 1


def handler(endpoint):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            """Nothing on the error output."""

        def do_GET(self):
            self.reply(None)

        def do_POST(self):
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body):
            endpoint.begin(self.path, self.headers, body)
            try:
                answer = endpoint.answer(body)
                time.sleep(answer.delay)
            finally:
                endpoint.end()
            self.send(answer)

        def send(self, answer):
            content = json.dumps(answer.body) if isinstance(answer.body, dict) else answer.body
            content = content.encode() if isinstance(content, str) else content
            self.close_connection = self.close_connection or answer.drop
            if answer.drop and not content:
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            # Dropped with a body: the connection ends before what the header announces.
            self.send_header("Content-Length", str(len(content) + (100 if answer.drop else 0)))
            self.end_headers()
            self.write(content, answer.drip)

        def write(self, content, drip):
            try:
                for place in range(len(content)) if drip else ():
                    self.wfile.write(content[place : place + 1])
                    self.wfile.flush()
                    time.sleep(drip)
                if not drip:
                    self.wfile.write(content)
            except OSError:
                endpoint.lost += 1
                self.close_connection = True

    return Handler


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """Clients that go away are part of the tests."""


@contextmanager
def serving(answer, port=0):
    """Serve until the end of the block. `answer(request body)` gives the Answer; it is called in many threads."""
    endpoint = Endpoint(answer)
    server = Server(("127.0.0.1", port), handler(endpoint))
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

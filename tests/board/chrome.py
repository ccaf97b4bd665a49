"""A headless Chromium, driven by its DevTools protocol over the websocket client that gradio brings."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

from tests.report.browser import browser

KEYS = {"Enter": 13, "Tab": 9, "Escape": 27, "Backspace": 8, " ": 32, "ArrowUp": 38, "ArrowDown": 40}
# gradio keeps the first open for as long as a page is shown, and the second, too, when its own messages overtake it;
# what it waits for there has a mark in the page until it has come.
ENDLESS = ("/heartbeat/", "/queue/data")
WAITING = "document.querySelectorAll('[data-testid=status-tracker]:not(.hide)').length"
# An event of the page reaches the server a few frames later.
BREATH = """new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 100))))"""


class Page:
    """One page: its scripts' values, its keys, its picture, and the errors of its console."""

    def __init__(self, socket: ClientConnection) -> None:
        self.errors: list[str] = []
        self.pending: dict[str, str] = {}
        self._requests = 0
        self._socket, self._last = socket, 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser, and note the errors that it tells in between."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=120))
            if message.get("id") == self._last:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent":
            self._ask(parameters["requestId"], parameters["request"]["url"])
        if event["method"] == "Page.frameNavigated" and "parentId" not in parameters["frame"]:
            # Nobody tells the end of what the page before has asked.
            self.pending.clear()
        if event["method"] in ("Network.loadingFinished", "Network.loadingFailed"):
            self.pending.pop(parameters["requestId"], None)
        if event["method"] == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        if event["method"] == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.errors.append(" ".join(str(item.get("value", "")) for item in parameters["args"]))
        if event["method"] == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

    def _ask(self, request: str, url: str) -> None:
        if not any(part in url for part in ENDLESS):
            self._requests += 1
            self.pending[request] = url

    def value(self, expression: str) -> Any:
        """The value of a script."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> Any:
        """The value of a script as soon as it is true."""
        return until(lambda: self.value(expression), expression, seconds)

    def idle(self, seconds: float = 120) -> None:
        """Wait until the server has answered all that the page asks, and the page asks no more because of it."""
        try:
            until(self._is_idle, "an idle page", seconds)
        except AssertionError as late:
            marks = self.value(WAITING)
            raise AssertionError(f"the page waits for {self.pending}, and {marks} of its fields wait") from late

    def _is_idle(self) -> bool:
        asked = self._requests
        self.value(BREATH)
        return not self.pending and asked == self._requests and self.value(WAITING) == 0

    def open(self, url: str, width: int = 1280, height: int = 1600) -> None:
        """Go to an address in a window of this size."""
        self.resize(width, height)
        noted = list(self.errors)
        self.send("Page.navigate", url=url)
        # The page that is left says that its connection is gone.
        self.errors[:] = noted

    def resize(self, width: int, height: int = 1600) -> None:
        """Make the window this large; narrow ones are a telephone's."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def type(self, text: str) -> None:
        """Type into what has the focus, over what is selected."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0, commands: tuple[str, ...] = ()) -> None:
        """Press and release a key: one of KEYS, or a character."""
        code = KEYS[key] if key in KEYS else ord(key.upper()) if key.isascii() and key.isalnum() else 0
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 and not modifiers else "")
        common = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, text=text, commands=list(commands))
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, expression: str) -> None:
        """Click in the middle of an element."""
        box = self.value(f"(() => {{ const found = {expression}; found.scrollIntoView({{block: 'nearest'}});"
                         "const box = found.getBoundingClientRect();"
                         "return [box.x + box.width / 2, box.y + box.height / 2]; })()")  # fmt: skip
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def screenshot(self, path: Path) -> Path:
        """Write a picture of the window."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
        return path


def until(condition: Callable[[], Any], what: str, seconds: float) -> Any:
    """The condition's value as soon as it is true.

    Raises:
        AssertionError: when the time is over.
    """
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return found


@contextmanager
def open_browser(folder: Path) -> Iterator[Page]:
    """A browser with an empty profile, and its one page."""
    log = folder / "chromium.log"
    command = [browser() or "", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    # A page that was left may live on, and its streams would take the six connections that a server is granted.
    command += ["--disable-features=BackForwardCache", f"--user-data-dir={folder / 'profile'}"]
    command += ["--remote-debugging-port=0", "about:blank"]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            found = until(lambda: re.search(r"ws://([^/]+)/", log.read_text()), "chromium's address", 60)
            targets = json.load(urlopen(f"http://{found[1]}/json/list", timeout=30))
            address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
            with connect(address, max_size=None) as socket:
                yield Page(socket)
        finally:
            process.kill()

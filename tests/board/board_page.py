"""LLaMA Board as a user sees it: fields by their labels, buttons by their texts, and a server that serves it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.board.chrome import Page, until

# What gradio 5 says on any page: it asks for a manifest that it does not serve, and for files of the net.
GRADIOS_OWN = ("manifest.json", "fonts.googleapis.com", "cdnjs.cloudflare.com")
FIELD = """(() => {
  const shown = [...document.querySelectorAll('[data-testid="block-info"]')].filter((node) => node.offsetParent !== null);
  const found = shown.find((node) => node.innerText.trim() === LABEL);
  return found && found.closest(".block").querySelector("textarea, input");
})()"""
BUTTON = """[...document.querySelectorAll("button")].find((node) => node.offsetParent !== null
  && node.innerText.trim().split("\\n")[0] === LABEL)"""


class Board:
    """The tab "Train"."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url

    def open(self, width: int = 1280) -> None:
        """Load the page and wait until its own start has filled the fields."""
        self.page.open(self.url, width)
        self.page.wait(f"({_of(FIELD, 'Output dir')} || {{}}).value > ''")

    def fill(self, label: str, text: str) -> None:
        """Write into a field of text or of a number, with the keyboard."""
        self._select(label)
        self.page.type(text)
        self.page.press("Tab")
        assert self.shown(label) == text

    def choose(self, label: str, choice: str) -> None:
        """Choose one of a list."""
        self._select(label)
        self.page.type(choice)
        option = f"document.querySelector('li[role=option][aria-label={json.dumps(choice)}]')"
        self.page.wait(option + " !== null")
        self.page.click(option)
        self.page.press("Tab")

    def name(self, label: str, new: str) -> None:
        """Write a name of one's own where the list has others."""
        self._select(label)
        self.page.type(new)
        self.page.press("Enter")
        self.page.press("Tab")
        assert self.shown(label) == new

    def _select(self, label: str) -> None:
        self.page.wait(f"(() => {{ const field = {_of(FIELD, label)}; field && (field.focus(), field.select());"
                       "return field && document.activeElement === field; })()")  # fmt: skip

    def shown(self, label: str) -> str:
        """What a field shows."""
        return str(self.page.value(f"{_of(FIELD, label)}.value"))

    def press(self, button: str) -> None:
        """Press a button, or open what is folded, with the keyboard."""
        found = _of(BUTTON, button)
        self.page.wait(f"(() => {{ const found = {found}; found && found.focus();"
                       "return found && document.activeElement === found; })()")  # fmt: skip
        self.page.press("Enter")

    def says(self, text: str, seconds: float = 60) -> str:
        """The page's text as soon as it holds this one."""
        return self.says_one_of(text, seconds=seconds)

    def says_one_of(self, *texts: str, seconds: float = 60) -> str:
        """The page's text as soon as it holds one of these."""
        end = time.monotonic() + seconds
        while not any(text in (shown := self.text()) for text in texts):
            assert time.monotonic() < end, f"not within {seconds} s: {texts}; the page says: {shown[-1500:]}"
            time.sleep(0.5)
        return shown

    def answer(self) -> str:
        """What stands below the buttons; messages that pop up are elsewhere."""
        shown = "[...document.querySelectorAll('.prose')].filter((node) => node.offsetParent !== null)"
        return str(self.page.value(f"{shown}.map((node) => node.innerText).join('\\n')"))

    def text(self) -> str:
        """Everything that can be read on the page."""
        return str(self.page.value("document.body.innerText"))

    def errors(self) -> list[str]:
        """The errors of the console, but for gradio's own."""
        return [error for error in self.page.errors if not any(own in error for own in GRADIOS_OWN)]


def _of(script: str, label: str) -> str:
    return script.replace("LABEL", json.dumps(label))


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`llamafactory-cli webui` in a folder; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    # It opens a browser of its own; `true` is one that shows nothing.
    environment = {**os.environ, **own, "BROWSER": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(Path(sys.executable).parent / "llamafactory-cli"), "webui"]
    log = folder / "webui.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            until(lambda: server.poll() is not None or _answers(port), "the page", 120)
            assert server.poll() is None, log.read_text()
            yield f"http://127.0.0.1:{port}/"
        finally:
            # The run that the page has started, too.
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _answers(port: int) -> bool:
    try:
        return bool(urlopen(f"http://127.0.0.1:{port}/", timeout=30).status == 200)
    except URLError:
        return False

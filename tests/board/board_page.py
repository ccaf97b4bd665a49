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
        self.page.wait(f"({label_of(FIELD, 'Output dir')} || {{}}).value > ''")
        self.page.idle()

    def fill(self, label: str, text: str) -> None:
        """Write into a field of text or of a number, with the keyboard."""
        self._select(label)
        self.page.type(text)
        self._leave(label, text)

    def choose(self, label: str, choice: str) -> None:
        """Choose one of a list."""
        self._select(label)
        self.page.type(choice)
        option = f"document.querySelector('li[role=option][aria-label={json.dumps(choice)}]')"
        self.page.wait(option + " !== null")
        self.page.click(option)
        self.page.press("Tab")
        self.page.idle()

    def name(self, label: str, new: str) -> None:
        """Write a name of one's own where the list has others."""
        self._select(label)
        self.page.type(new)
        self.page.press("Enter")
        self._leave(label, new)

    def _select(self, label: str) -> None:
        # The server answers a change of one field with new values of others, which would take away what is written
        # before; some fields ask for their choices when they get the focus.
        self.page.idle()
        self.page.wait(f"(() => {{ const field = {label_of(FIELD, label)}; field && (field.focus(), field.select());"
                       "return field && document.activeElement === field; })()")  # fmt: skip
        self.page.idle()

    def _leave(self, label: str, text: str) -> None:
        self.page.press("Tab")
        self.page.idle()
        assert self.shown(label) == text

    def shown(self, label: str) -> str:
        """What a field shows."""
        return str(self.page.value(f"{label_of(FIELD, label)}.value"))

    def press(self, button: str) -> None:
        """Press a button, or open what is folded, with the keyboard."""
        found = label_of(BUTTON, button)
        self.page.wait(f"(() => {{ const found = {found}; found && found.focus();"
                       "return found && document.activeElement === found; })()")  # fmt: skip
        self.page.press("Enter")

    def says(self, text: str, seconds: float = 60) -> str:
        """The page's text as soon as it holds this one."""
        end = time.monotonic() + seconds
        while text not in (shown := self.text()):
            assert time.monotonic() < end, f"not within {seconds} s: {text!r}; the page says: {shown[-1500:]}"
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


def label_of(script: str, label: str) -> str:
    """The script that finds the field or button of this label."""
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
    # The page starts a run by the bare name of the command, so that it has to be on the path, as in an activated venv.
    commands = Path(sys.executable).parent
    environment["PATH"] = f"{commands}{os.pathsep}{environment['PATH']}"
    command = [str(commands / "llamafactory-cli"), "webui"]
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

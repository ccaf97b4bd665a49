"""One worker process, as the trainer sees it."""

import contextlib
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trl_grpo_ext
from trl_grpo_ext.rewards.runtime.errors import RewardLoadError, WorkerEnded
from trl_grpo_ext.rewards.runtime.functions import Shipment
from trl_grpo_ext.rewards.runtime.messages import MAX_REPLY_BYTES, BadMessage, Channel, ChannelClosed, decode_reply
from trl_grpo_ext.rewards.runtime.settings import WorkerSettings

_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
_TOO_MANY_PROCESSES, _TOO_MUCH_MEMORY = 75, 76


@dataclass(frozen=True)
class Capabilities:
    """The isolation that a worker has.

    Args:
        user: a user namespace.
        processes: a process namespace: everything in it ends with the worker, and nothing outside can be signalled.
        network: a network namespace without any interface.
        files: everything is read-only but a scratch folder in memory, which is gone with the worker.
        reasons: why the missing ones are missing.
    """

    user: bool
    processes: bool
    network: bool
    files: bool
    reasons: tuple[str, ...]

    @property
    def sandbox(self) -> bool:
        """Whether untrusted programs may run: processes, network and files are all isolated."""
        return self.processes and self.network and self.files


def _environment(settings: WorkerSettings) -> dict[str, str]:
    root = str(Path(trl_grpo_ext.__file__).resolve().parents[1])
    environment = {name: value for name, value in os.environ.items() if settings.network or not _SECRET.search(name)}
    path = [root, *filter(None, [environment.get("PYTHONPATH")])]
    # One thread each: a pool of workers on the trainer's machine must not start a pool of threads each.
    return {"OMP_NUM_THREADS": "1"} | environment | {"PYTHONPATH": os.pathsep.join(path)}


def _why(code: int) -> str:
    if code == _TOO_MANY_PROCESSES:
        return "it started more processes than process_limit allows"
    if code == _TOO_MUCH_MEMORY:
        return "it used more memory than memory_limit allows"
    # The worker's signal, as the supervisor reports it, or the supervisor's own.
    number = -code if code < 0 else code - 128
    if number == signal.SIGXCPU:
        return "it used more CPU time than cpu_limit allows"
    if number > 0:
        return f"it was ended by signal {number}"
    return f"it ended with exit code {code}"


class WorkerProcess:
    """Starts at once; answers later. Not thread-safe: one caller at a time.

    Args:
        settings: its limits.
        quiet: whether its standard output and error go nowhere, instead of to the trainer's standard error.
    """

    def __init__(self, settings: WorkerSettings, quiet: bool = False) -> None:
        self._settings = settings
        self._loaded: set[str] = set()
        self._capabilities: Capabilities | None = None
        ours, theirs = socket.socketpair()
        control_read, self._control = os.pipe()
        self._channel = Channel(ours, MAX_REPLY_BYTES)
        config = {
            "data": theirs.fileno(),
            "control": control_read,
            "trainer": os.getpid(),
            "path": [os.path.abspath(entry) for entry in sys.path],
            "quiet": quiet,
            "settings": asdict(settings),
        }
        module = "trl_grpo_ext.rewards.runtime.worker"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, json.dumps(config)],
                stdin=subprocess.DEVNULL,
                env=_environment(settings),
                pass_fds=(theirs.fileno(), control_read),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._control)
            self._channel.close()
            raise
        finally:
            theirs.close()
            os.close(control_read)

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self._process.pid

    def capabilities(self) -> Capabilities:
        """Return the worker's isolation, waiting until it has started.

        Raises:
            WorkerEnded: it did not start.
        """
        if self._capabilities is None:
            reply = self._receive(time.monotonic() + self._settings.load_deadline)
            parts = reply["isolation"]
            flags = {name: bool(parts[name]) for name in ("user", "processes", "network", "files")}
            self._capabilities = Capabilities(**flags, reasons=tuple(map(str, parts["reasons"])))
        return self._capabilities

    def load(self, shipment: Shipment) -> None:
        """Load a function, unless this worker has it.

        Raises:
            RewardLoadError: it can't be loaded there.
            WorkerEnded, DeadlineExceeded: the worker did not survive it, or took longer than `load_deadline`.
        """
        self.capabilities()
        if shipment.version in self._loaded:
            return
        request = {
            "kind": "load",
            **{name: getattr(shipment, name) for name in ("version", "spec", "payload", "imports")},
        }
        self._request(pickle.dumps(request), shipment.name)
        self._loaded.add(shipment.version)

    def begin(self, shipment: Shipment, request: bytes) -> None:
        """Send a pickled request of several calls.

        Raises:
            WorkerEnded, DeadlineExceeded: the worker has not taken it.
            RewardLoadError: the worker can't read it.
        """
        self._request(request, shipment.name)

    def replies(self, calls: int, deadline: float) -> Iterator[dict[str, Any]]:
        """Yield the reply to each call of the request.

        Raises:
            DeadlineExceeded: the next call took longer than `deadline` seconds.
            WorkerEnded: the worker ended in the next call.
        """
        for _ in range(calls):
            yield self._receive(time.monotonic() + deadline)

    def _request(self, request: bytes, name: str) -> None:
        deadline = time.monotonic() + self._settings.load_deadline
        try:
            self._channel.send(request, deadline)
        except ChannelClosed:
            raise WorkerEnded(self._reason()) from None
        reply = self._receive(deadline)
        if "failed" in reply:
            raise RewardLoadError(
                f"Reward {name!r} can't run in a worker process: {reply['failed']}. Install what it imports, name it by "
                f"its file ('path.py:function'), or say in_process=True. In the worker:\n{reply.get('trace', '')}"
            )

    def _receive(self, deadline: float) -> dict[str, Any]:
        try:
            return decode_reply(self._channel.receive(deadline))
        except ChannelClosed:
            raise WorkerEnded(self._reason()) from None
        except BadMessage as error:
            raise WorkerEnded(f"it sent {error}") from None

    def _reason(self) -> str:
        # The supervisor first ends what the worker left behind.
        with contextlib.suppress(subprocess.TimeoutExpired):
            return _why(self._process.wait(timeout=6))
        return "it closed its channel"

    def forget(self) -> None:
        """Close this process's copies of the connection, without ending the worker: for a fork of the trainer."""
        self._channel.close()
        with contextlib.suppress(OSError):
            os.close(self._control)
        self._control = -1
        # Not this process's child: waiting for it would fail.
        self._process.returncode = 0

    def kill(self) -> None:
        """Have the worker and everything it started killed (SIGKILL), and wait for the end. Safe to call twice."""
        if self._control >= 0:
            os.close(self._control)
            self._control = -1
        self._channel.close()
        try:
            self._process.wait(timeout=6)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

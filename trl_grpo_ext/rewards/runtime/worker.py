"""The worker executable: `python -m trl_grpo_ext.rewards.runtime.worker`, started by the trainer, never by hand.

It does not import torch, nor the trainer's main module, so it starts in a fraction of a second and works for functions
from notebooks and from scripts without a main guard.
"""

import importlib
import json
import os
import pickle
import signal
import socket
import sys
import traceback
from typing import Any

from trl_grpo_ext.rewards.runtime.forks import call_in_fork, empty_folder
from trl_grpo_ext.rewards.runtime.functions import RewardFunction, unpack
from trl_grpo_ext.rewards.runtime.messages import MAX_REQUEST_BYTES, Channel, ChannelClosed
from trl_grpo_ext.rewards.runtime.rows import call, encode
from trl_grpo_ext.rewards.runtime.sandbox import Isolation, apply_limits, limit_cpu
from trl_grpo_ext.rewards.runtime.settings import WorkerSettings
from trl_grpo_ext.rewards.runtime.supervisor import supervise


class Worker:
    """Answers the trainer's requests, one after the other."""

    def __init__(self, channel: Channel, isolation: Isolation) -> None:
        self._channel = channel
        self._isolation = isolation
        self._functions: dict[str, RewardFunction] = {}

    def serve(self) -> None:
        """Answer until the trainer closes the channel."""
        self._channel.send(encode({"isolation": vars(self._isolation)}))
        while True:
            try:
                data = self._channel.receive()
            except ChannelClosed:
                return
            self._answer(data)

    def _answer(self, data: bytes) -> None:
        try:
            request = pickle.loads(data)
            if request["kind"] == "load":
                for module in request["imports"]:
                    importlib.import_module(module)
                self._functions[request["version"]] = unpack(request["spec"], request["payload"])
        except BaseException as error:
            trace = traceback.format_exc()[-4000:]
            self._channel.send(encode({"failed": f"{type(error).__name__}: {error}", "trace": trace}))
            return
        self._channel.send(encode({"ready": True}))
        if request["kind"] == "rows":
            self._run(request)

    def _run(self, request: dict[str, Any]) -> None:
        func = self._functions[request["version"]]
        for columns, count in request["calls"]:

            def work(columns: dict[str, Any] = columns, count: int = count) -> bytes:
                return encode(call(func, columns, count, request["state"], request["wants_logs"]))

            if request["fork"]:
                # A row that could write to the channel could score the rows after it.
                forked = call_in_fork(
                    work, request["cpu"], request["deadline"], self._isolation.processes, self._channel.close
                )
                empty_folder(self._isolation.scratch)
                self._channel.send(forked)
            else:
                limit_cpu(request["cpu"], final=False)
                self._channel.send(work())


def _use_output(quiet: bool) -> None:
    """Send prints to the trainer's standard error, or nowhere; nothing can reach the message channel."""
    target = os.open(os.devnull, os.O_WRONLY) if quiet else 2
    os.dup2(target, 1)
    if quiet:
        os.dup2(target, 2)


def main(arguments: str) -> int:
    """Start the supervisor and the worker below it.

    Args:
        arguments: JSON with the descriptors, the trainer's process id, its `sys.path` and the settings.
    """
    # LLaMA Board aborts a run by this signal to all of its processes; the trainer then finishes its step, with us.
    signal.signal(signal.SIGABRT, signal.SIG_IGN)
    config = json.loads(arguments)
    sys.path[:] = config["path"]
    settings = WorkerSettings(**config["settings"])
    data = socket.socket(fileno=config["data"])
    # Programs that a reward starts get neither.
    data.set_inheritable(False)
    os.set_inheritable(config["control"], False)

    def work(isolation: Isolation) -> None:
        os.close(config["control"])
        os.chdir(isolation.scratch)
        os.environ["TMPDIR"] = isolation.scratch
        apply_limits(settings, isolation)
        Worker(Channel(data, MAX_REQUEST_BYTES), isolation).serve()

    _use_output(config["quiet"])
    return supervise(settings, config["control"], config["trainer"], work, data.close)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""One row in a throw-away fork of a worker, of which nothing is left for the rows after it."""

import contextlib
import math
import os
import secrets
import select
import signal
import time
from collections.abc import Callable, Iterator

from trl_grpo_ext.rewards.runtime.messages import MAX_REPLY_BYTES, BadMessage, decode_reply
from trl_grpo_ext.rewards.runtime.rows import encode
from trl_grpo_ext.rewards.runtime.sandbox import limit_cpu

_SECONDS_TO_DIE = 2.0


@contextlib.contextmanager
def _row_processes(whole_namespace: bool, child: int) -> Iterator[None]:
    """On leaving, end the row's fork and what it started (all of the namespace, or its process group)."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1 if whole_namespace else -child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
        if whole_namespace:
            _wait_until_alone()


def _wait_until_alone() -> None:
    """Processes that are still dying count against the next row's limits."""
    end = time.monotonic() + _SECONDS_TO_DIE
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.kill(-1, signal.SIGKILL)
            time.sleep(0.0005)


def _drop_output() -> None:
    """Through the trainer's standard error a program could fill its disk, or cut off its log."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def empty_folder(folder: str) -> None:
    """Remove everything in a folder, however deep it is nested and whatever its modes are."""
    pending = [folder]
    while pending:
        current = pending.pop()
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(current)):
                _remove(entry, folder, pending)
            if current != folder:
                os.rmdir(current)


def _remove(entry: "os.DirEntry[str]", folder: str, pending: list[str]) -> None:
    with contextlib.suppress(OSError):
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)
            return
        # To the top, so that no path gets long.
        top = os.path.join(folder, secrets.token_hex(16))
        os.chmod(entry.path, 0o700)
        os.rename(entry.path, top)
        pending.append(top)


def call_in_fork(
    work: Callable[[], bytes],
    cpu_seconds: float,
    seconds: float,
    whole_namespace: bool,
    in_child: Callable[[], None],
) -> bytes:
    """Run `work` in a fork that is thrown away, so that nothing the row does is seen by later rows.

    Args:
        work: what to run.
        cpu_seconds: CPU time of the fork.
        seconds: then the row is over. Without a namespace the trainer has to end it, which ends this process too.
        whole_namespace: whether this process has a process namespace, so that every other process in it belongs to
            the row and ends with it; else those in the row's process group do.
        in_child: runs first in the fork.

    Returns:
        What `work` returned, or a reply with `ended` when the fork ended without an answer, with `late` when it did
        not end in time.
    """
    end = time.monotonic() + (seconds if whole_namespace else math.inf)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            os.close(reader)
            in_child()
            _drop_output()
            limit_cpu(cpu_seconds, final=True)
            left = memoryview(work())
            while left:
                left = left[os.write(writer, left) :]
        os._exit(0)
    os.close(writer)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    try:
        with _row_processes(whole_namespace, child):
            # The end of the row's own process is the end of the row, also when something it started holds the pipe.
            data = _read_until_end(reader, child, end)
    finally:
        os.close(reader)
    return encode({"late": True}) if data is None else _checked(data)


def _checked(data: bytes) -> bytes:
    try:
        # A row may write what it likes; the trainer gives up a worker that sends nonsense.
        decode_reply(data)
    except BadMessage:
        return encode({"ended": "its process ended without an answer"})
    return data


def _read_until_end(reader: int, child: int, end: float) -> bytes | None:
    """Return what the row's process wrote until it closed the pipe or ended; b"" when that is too much, None if late."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    parts: list[bytes] = []
    size = 0
    while time.monotonic() < end:
        if poll.poll(5):
            part = os.read(reader, 1 << 20)
            parts.append(part)
            size += len(part)
            if size > MAX_REPLY_BYTES:
                return b""
            if not part:
                return b"".join(parts)
        elif os.waitpid(child, os.WNOHANG)[0]:
            os.set_blocking(reader, False)
            with contextlib.suppress(BlockingIOError):
                while part := os.read(reader, 1 << 20):
                    parts.append(part)
            return b"".join(parts)
    return None

"""Training in a process of its own that is killed: forked, so that nothing is imported a second time."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from tqdm.std import tqdm


def kill_me(*_: object, **__: object) -> NoReturn:
    """As the kernel's out-of-memory killer does it: nothing runs after this."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def unshare_lock(bar: type, lock: object) -> None:
    """tqdm's own lock is a semaphore that parent and child share: a child killed with it would take it along."""
    bar._lock = lock
    for derived in bar.__subclasses__():
        unshare_lock(derived, lock)


def started(work: Callable[[], None]) -> int:
    """Run in a child process and return its id."""
    sys.stdout.flush()
    unshare_lock(tqdm, threading.RLock())
    child = os.fork()
    if child == 0:
        _end(work)
    return child


def in_child(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Run in a child process and return how it ended: its exit status, or the negative number of a signal."""
    child = started(work)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _end(work: Callable[[], None]) -> NoReturn:
    status = 1
    # A child that waits for what its parent's threads hold fails its test, and stops nothing else.
    signal.alarm(300)
    try:
        work()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        # With a full disk there is nowhere to flush to, and nothing may keep the child from its end.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)

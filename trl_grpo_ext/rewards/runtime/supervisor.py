"""The parent of a worker: it runs no reward code, so it can always end the worker and all that the worker started.

Processes: trainer -> supervisor -> [first process of the namespace] -> worker -> whatever the reward starts.
"""

import contextlib
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from trl_grpo_ext.rewards.runtime import kernel
from trl_grpo_ext.rewards.runtime.sandbox import Isolation, enter_namespaces, show_own_processes
from trl_grpo_ext.rewards.runtime.settings import WorkerSettings

TOO_MANY_PROCESSES, TOO_MUCH_MEMORY = 75, 76
_POLL_MS = 50


def _end_with_parent(parent: int) -> None:
    """Have this process killed when its parent ends, also when it ended already."""
    if kernel.is_linux():
        kernel.die_with_parent(signal.SIGKILL)
    # Inside a new process namespace the parent reads as 0.
    if os.getppid() not in (parent, 0):
        os._exit(1)


def _exit_code(status: int) -> int:
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _wait_as_init(worker: int) -> int:
    """Reap every orphan of the namespace until the worker ends; then the kernel ends the rest of the namespace."""
    while True:
        pid, status = os.wait()
        if pid == worker:
            return _exit_code(status)


def _start(isolation: Isolation, run: Callable[[], None]) -> int:
    """Fork the worker, under a first process of its own where it has a process namespace; return the child's pid."""
    supervisor = os.getpid()
    child = os.fork()
    if child:
        return child
    _end_with_parent(supervisor)
    os.setsid()
    if isolation.processes:
        if isolation.files:
            show_own_processes()
        init = os.getpid()
        worker = os.fork()
        if worker:
            os._exit(_wait_as_init(worker))
        _end_with_parent(init)
        os.setsid()
    try:
        run()
    finally:
        os._exit(0)


def _descendants(root: int, limit: int) -> list[int]:
    """Return the processes below `root`, parents first; the search ends once there are more than `limit`."""
    found: list[int] = []
    queue = [root]
    while queue and len(found) <= limit:
        pid = queue.pop(0)
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                children = [int(child) for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
                found += children
                queue += children
    return found


def _resident_bytes(pids: list[int]) -> int:
    """Return the memory that these processes have to themselves (without files and what is shared as such)."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
            pages += int(resident) - int(shared)
    return pages * os.sysconf("SC_PAGE_SIZE")


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _kill_descendants() -> None:
    """Kill and reap everything below this process; give up after 5 seconds."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        _reap()
        remaining = _descendants(os.getpid(), 10_000)
        if not remaining:
            return
        # Stopped first: a process that forks faster than it is found would otherwise get away.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in remaining:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        time.sleep(0.001)


def _kill(child: int) -> None:
    """Kill the worker and all that it started; the first process of a namespace takes the rest along."""
    for kill in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child, signal.SIGKILL)
    _kill_descendants()


def _watch(child: int, settings: WorkerSettings, trainer: int, control: int, processes_of_ours: int) -> int:
    poll = select.poll()
    poll.register(control, select.POLLIN)
    limit = settings.process_limit + processes_of_ours
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            _kill_descendants()
            return _exit_code(status)
        if poll.poll(_POLL_MS) or os.getppid() != trainer:
            _kill(child)
            return 0
        descendants = _descendants(os.getpid(), limit)
        if len(descendants) > limit:
            _kill(child)
            return TOO_MANY_PROCESSES
        # Twice: a fork's memory is counted once more although it shares it.
        if _resident_bytes(descendants) > 2 * settings.memory_limit:
            _kill(child)
            return TOO_MUCH_MEMORY


def supervise(
    settings: WorkerSettings,
    control: int,
    trainer: int,
    work: Callable[[Isolation], None],
    after_start: Callable[[], None],
) -> int:
    """Isolate, run `work` in a child, and watch it until one of these: it ends; the trainer closes the control pipe
    or ends; it has more processes or memory than allowed. Nothing that it started is left.

    Args:
        settings: the limits.
        control: a descriptor that becomes readable (end of file) when the trainer wants the worker to end.
        trainer: the trainer's process id.
        work: runs in the child, with what isolation was achieved.
        after_start: runs in the supervisor once the child exists; closes what only the child needs.

    Returns:
        The worker's exit code, 128 + signal for one ended by a signal, `TOO_MANY_PROCESSES` or `TOO_MUCH_MEMORY`.
    """
    if kernel.is_linux():
        kernel.adopt_orphans()
    isolation = enter_namespaces(settings)
    if kernel.is_linux():
        # Before the first fork: the namespace's first process and the worker hold the connection to the trainer.
        kernel.hide_memory()
    own_folder = None if isolation.files else tempfile.mkdtemp(prefix="reward-")
    isolation.scratch = own_folder or isolation.scratch
    try:
        child = _start(isolation, lambda: work(isolation))
        after_start()
        return _watch(child, settings, trainer, control, 2 if isolation.processes else 1)
    finally:
        if own_folder is not None:
            shutil.rmtree(own_folder, ignore_errors=True)

"""What a worker gives up before it runs anything: namespaces, writable files, capabilities, resources.

Runs in the worker's own processes, never in the trainer's.
"""

import contextlib
import math
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trl_grpo_ext.rewards.runtime import kernel
from trl_grpo_ext.rewards.runtime.settings import WorkerSettings

_SCRATCH_PLACES = ("/dev/shm", "/var/tmp", "/tmp")
_NAMESPACE_LIMITS = ("/proc/sys/user/max_user_namespaces",)
_IPC_LIMITS = ("/proc/sys/kernel/shmmni", "/proc/sys/kernel/msgmni", "/proc/sys/fs/mqueue/queues_max")
_SCRATCH_FILES = 16_384
_DEVICES = ("null", "zero", "full", "random", "urandom")


@dataclass
class Isolation:
    """What a worker really got. `reasons` says why each missing part is missing."""

    user: bool = False
    processes: bool = False
    network: bool = False
    files: bool = False
    scratch: str = ""
    reasons: list[str] = field(default_factory=list)


@contextlib.contextmanager
def _noting(isolation: Isolation, part: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        isolation.reasons.append(f"{part}: {error.strerror or error}")


def _enter_user_namespace(isolation: Isolation) -> None:
    uid, gid = os.getuid(), os.getgid()
    with _noting(isolation, "user namespace"):
        kernel.unshare(kernel.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        isolation.user = True
        for limit in _NAMESPACE_LIMITS:
            # A namespace inside this one would give a program mounts and memory that no limit of ours counts.
            with contextlib.suppress(OSError):
                Path(limit).write_text("0")


def _scratch_place() -> str:
    """Return an existing folder that can be covered by a fresh file system without hiding a module."""
    needed = [os.path.realpath(path) for path in (*sys.path, sys.prefix, sys.base_prefix, os.getcwd()) if path]
    for place in _SCRATCH_PLACES:
        real = os.path.realpath(place)
        if os.path.isdir(real) and not any(path == real or path.startswith(real + os.sep) for path in needed):
            return real
    raise OSError(0, f"each of {', '.join(_SCRATCH_PLACES)} is missing or holds modules")


def _make_read_only(settings: WorkerSettings) -> str:
    """Make everything read-only but a fresh scratch folder in memory, and return that folder."""
    scratch = _scratch_place()
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    devices = [path for path in (f"/dev/{name}" for name in _DEVICES) if os.path.exists(path)]
    for path in devices:
        kernel.mount(path, path, None, kernel.MS_BIND)
    # A read-only mount does not stop writes to a disk's device file, of which root is the owner: hence no devices.
    attributes = kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV
    kernel.set_mount_attributes("/", add=attributes, recursive=True)
    for path in devices:
        kernel.set_mount_attributes(path, remove=kernel.ATTR_NODEV)
    size = f"size={settings.file_limit * 2},nr_inodes={_SCRATCH_FILES},mode=0700"
    kernel.mount("tmpfs", scratch, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, size)
    # The sockets of docker, dbus and the like: a connection to one is neither a write nor the network.
    with contextlib.suppress(OSError):
        kernel.mount("tmpfs", os.path.realpath("/run"), "tmpfs", kernel.MS_RDONLY)
    return scratch


def enter_namespaces(settings: WorkerSettings) -> Isolation:
    """Move this process and its future children into namespaces of their own, as far as the kernel allows.

    Args:
        settings: `namespaces=False` asks for none; `network` and `read_only` say which.

    Returns:
        What was achieved. The process-id namespace holds from the next fork on.
    """
    isolation = Isolation()
    if not settings.namespaces or not kernel.is_linux():
        isolation.reasons.append("namespaces: " + ("switched off" if not settings.namespaces else "not Linux"))
        return isolation
    _enter_user_namespace(isolation)
    with _noting(isolation, "process namespace"):
        kernel.unshare(kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS)
        isolation.processes = True
        for limit in _IPC_LIMITS:
            # Shared memory outlives the row that made it, and no limit of a process counts it.
            with contextlib.suppress(OSError):
                Path(limit).write_text("0")
    if not settings.network:
        with _noting(isolation, "network namespace"):
            kernel.unshare(kernel.CLONE_NEWNET)
            isolation.network = True
    if settings.read_only:
        with _noting(isolation, "mount namespace"):
            kernel.unshare(kernel.CLONE_NEWNS)
            isolation.scratch = _make_read_only(settings)
            isolation.files = True
    return isolation


def show_own_processes() -> None:
    """Mount a /proc of the new process namespace; where that is refused, the old one stays, read-only."""
    # In a namespace of its own: the supervisor goes on counting processes in the old one.
    kernel.unshare(kernel.CLONE_NEWNS)
    flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    with contextlib.suppress(OSError):
        kernel.mount("proc", "/proc", "proc", flags)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def apply_limits(settings: WorkerSettings, isolation: Isolation) -> None:
    """Set the resource limits of this process and its children, and give up every privilege."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, settings.file_limit)
    if kernel.is_linux():
        _limit(resource.RLIMIT_AS, settings.memory_limit)
    if isolation.user and os.getuid() != 0:
        # Outside a user namespace this limit counts all processes of the user, and it never binds root: there the
        # supervisor counts.
        _limit(resource.RLIMIT_NPROC, settings.process_limit)
    if kernel.is_linux():
        kernel.drop_privileges()


def limit_cpu(seconds: float, *, final: bool) -> None:
    """Allow this process `seconds` more of CPU time; the kernel ends it at the limit.

    Args:
        seconds: rounded up to whole seconds.
        final: whether this process may not raise the limit again.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1 if final and hard == resource.RLIM_INFINITY else hard))

"""A library whose file lies on a network file system, where SQLite's write-ahead log does not hold.

The work is done on a copy in the local temporary folder; snapshots of it are put in place at the target in one step.
A copy outlives its process: what a killed process had not published is found again on the same machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
import uuid
import warnings
from pathlib import Path

from trl_grpo_ext.experience.errors import ExperienceError, SnapshotConflictError, translated
from trl_grpo_ext.experience.records import content_id
from trl_grpo_ext.experience.store import ExperienceStore

NETWORK_FILE_SYSTEMS = frozenset(
    "9p afs beegfs ceph cifs fuse.gcsfuse fuse.glusterfs fuse.goofys fuse.juicefs fuse.rclone fuse.s3fs fuse.sshfs "
    "gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs panfs pvfs2 smb3 smbfs virtiofs wekafs".split()
)
MOUNTS = Path("/proc/self/mounts")


def file_system(path: Path, mounts: Path = MOUNTS) -> str:
    """Return the type of the file system that a path lies on; empty where the system does not say."""
    if not mounts.is_file():
        return ""
    found, length = "", -1
    for line in mounts.read_text(errors="replace").splitlines():
        fields = line.split()
        place = Path(fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        # The last of two mounts on one place is the one in use.
        if (place == path or place in path.parents) and len(place.parts) >= length:
            found, length = fields[2], len(place.parts)
    return found


def on_network(path: Path, mounts: Path = MOUNTS) -> bool:
    """Return whether a path lies on a network file system."""
    return file_system(path, mounts) in NETWORK_FILE_SYSTEMS


def write_snapshot(store: ExperienceStore, target: Path, token: str | None = None) -> None:
    """Put a copy of the library in place at the target: whole or not at all.

    Raises:
        ExperienceError: the folder is missing or full; a snapshot that stood there is as it was.
    """
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    try:
        copy = sqlite3.connect(name, isolation_level=None)
        try:
            store.copy_to(copy)
            copy.execute("DELETE FROM meta WHERE key IN ('snapshot', 'planned', 'published')")
            if token is not None:
                copy.execute("INSERT INTO meta VALUES ('snapshot', ?)", (token,))
        finally:
            copy.close()
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read_meta(path: Path) -> dict[str, str]:
    """The settings of a library file, and its version; empty where there is none."""
    if not path.is_file():
        return {}
    with translated(str(path)):
        # Nothing may be locked, or written beside it, on a network file system.
        mode = "mode=ro" if path.with_name(path.name + "-wal").exists() else "mode=ro&immutable=1"
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True)
        try:
            version = connection.execute("SELECT max(version) FROM versions").fetchone()[0]
            return dict(connection.execute("SELECT key, value FROM meta")) | {"version": str(version)}
        finally:
            connection.close()


class SnapshotFile:
    """The local copy of a library, and the way of its snapshots to the target.

    Args:
        target: where the snapshots go.
        folder: where the copy is made; the system's temporary folder by default.

    Raises:
        ExperienceError: the temporary folder is on a network file system as well.
    """

    def __init__(self, target: Path, folder: Path | None = None) -> None:
        self.target = target.absolute()
        folder = folder or Path(tempfile.gettempdir()) / f"trl-grpo-ext-{os.getuid() if hasattr(os, 'getuid') else 0}"
        if on_network(folder.absolute()):
            raise ExperienceError(
                f"{target} is on a network file system and so is {folder}: set TMPDIR to a local disk."
            )
        self.local = folder / content_id(str(self.target)) / "experiences.db"

    def prepare(self) -> Path:
        """Return the local copy: the one of an earlier process, if the target has not changed since, or a new one.

        Raises:
            ExperienceError: the target's folder is missing, or its file is no library.
        """
        if not self.target.parent.is_dir():
            raise ExperienceError(f"{self.target}: the folder does not exist; create it first.")
        self.local.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        theirs, mine = _read_meta(self.target), _read_meta(self.local)
        expected = (mine.get("snapshot"), mine.get("planned"))
        same = theirs.get("snapshot", "") in expected if theirs else "snapshot" not in mine
        if mine and not same:
            self._set_aside(keep=mine["version"] != mine.get("published", "0"))
        if theirs and not self.local.is_file():
            self._copy(theirs["version"])
        return self.local

    def _copy(self, version: str) -> None:
        partial = self.local.with_name(f"copying-{uuid.uuid4().hex}")
        shutil.copyfile(self.target, partial)
        with contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('published', ?)", (version,))
        os.replace(partial, self.local)

    def _set_aside(self, keep: bool) -> None:
        """The target went its own way: take what it has now, and keep what it never saw."""
        aside = self.local.with_name(f"unpublished-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}.db")
        for suffix in ("-wal", "-shm", ""):
            file = self.local.with_name(self.local.name + suffix)
            if file.exists():
                os.replace(file, aside.with_name(aside.name + suffix)) if keep else file.unlink()
        if keep:
            warnings.warn(
                f"{self.target} is not what an earlier process on this machine left there. What that process had not "
                f"published is kept in {aside}: grpo-ext experiences merge {self.target} {aside}",
                stacklevel=4,
            )

    def publish(self, store: ExperienceStore) -> None:
        """Write a snapshot to the target, unless it has this version already.

        Raises:
            SnapshotConflictError: another machine has published since; ours is written beside it.
        """
        version = str(store.version)
        if store.meta("published") == version and self.target.is_file():
            return
        theirs = _read_meta(self.target).get("snapshot")
        if theirs is not None and theirs not in (store.meta("snapshot"), store.meta("planned")):
            beside = self.target.with_name(f"{self.target.stem}-conflict-{uuid.uuid4().hex[:8]}{self.target.suffix}")
            write_snapshot(store, beside)
            raise SnapshotConflictError(
                f"{self.target} was written by another process since it was opened. This library went to {beside}: "
                f"grpo-ext experiences merge {self.target} {beside}"
            )
        token = uuid.uuid4().hex
        store.set_meta("planned", token)
        write_snapshot(store, self.target, token)
        store.set_meta("snapshot", token)
        store.set_meta("published", version)

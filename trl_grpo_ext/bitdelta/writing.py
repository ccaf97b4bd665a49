"""Files that appear whole or not at all: safetensors written in a stream, folders put in place in one step."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from trl_grpo_ext.bitdelta.errors import BitDeltaError
from trl_grpo_ext.bitdelta.headers import NAMES, width


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written: its name, dtype as safetensors has it, and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return torch.Size(self.shape).numel() * width(self.dtype)


def planned(name: str, tensor: Tensor) -> Planned:
    """Return the plan of a tensor."""
    return Planned(name, NAMES[tensor.dtype], tuple(tensor.shape))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes, without a copy where it is contiguous."""
    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def _header(plan: Sequence[Planned]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for item in plan:
        entries[item.name] = {
            "dtype": item.dtype,
            "shape": list(item.shape),
            "data_offsets": [place, place + item.nbytes],
        }
        place += item.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def write_safetensors(path: Path, plan: Sequence[Planned], data: Callable[[Planned, IO[bytes]], None]) -> None:
    """Write a safetensors file; `data` writes the bytes of one planned tensor.

    Wide dtypes come first, so that every tensor is aligned.
    """
    plan = sorted(plan, key=lambda item: (-width(item.dtype), item.name))
    with open(path, "wb") as file:
        header = _header(plan)
        file.write(len(header).to_bytes(8, "little") + header)
        for item in plan:
            before = file.tell()
            data(item, file)
            if file.tell() - before != item.nbytes:
                raise BitDeltaError(
                    f"{item.name}: {file.tell() - before} bytes were written instead of {item.nbytes}."
                )
        file.flush()
        os.fsync(file.fileno())


class Spool:
    """Tensors on their way into files whose headers are not known yet; kept in one file, not in memory."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b")  # noqa: SIM115
        self._path = path
        self._places: dict[str, int] = {}
        self.plan: dict[str, Planned] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Append a tensor."""
        self._places[name] = self._file.seek(0, os.SEEK_END)
        self.plan[name] = planned(name, tensor)
        self._file.write(tensor_bytes(tensor))

    def copy(self, item: Planned, target: IO[bytes]) -> None:
        """Write a tensor's bytes into another file."""
        self._file.seek(self._places[item.name])
        left = item.nbytes
        while left:
            chunk = self._file.read(min(left, 1 << 24))
            target.write(chunk)
            left -= len(chunk)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def shards(plan: Sequence[Sequence[Planned]], limit: int) -> list[list[Planned]]:
    """Return groups of tensors, joined in order into shards of at most `limit` bytes; no group is divided."""
    found: list[list[Planned]] = [[]]
    size = 0
    for group in plan:
        nbytes = sum(item.nbytes for item in group)
        if size and size + nbytes > limit:
            found.append([])
            size = 0
        found[-1] += group
        size += nbytes
    return found


def shard_names(stem: str, count: int) -> list[str]:
    """Return the files' names, as transformers has them."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]


def check_target(out: Path, overwrite: bool) -> None:
    """Refuse a target that would be lost.

    Raises:
        BitDeltaError: it is a file, a folder with something in it without `overwrite`, or its parent is missing.
    """
    if not out.absolute().parent.is_dir():
        raise BitDeltaError(f"{out}: its parent folder does not exist.")
    if out.is_file() or out.is_symlink():
        raise BitDeltaError(f"{out} is a file or a link, not a folder.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise BitDeltaError(f"{out} is not empty; name another folder, or say overwrite.")


@contextlib.contextmanager
def new_folder(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder to write to, which takes the place of `out` at the end, or vanishes on an error.

    Raises:
        BitDeltaError: the target may not be replaced, or the disk is full; the target is as it was.
    """
    check_target(out, overwrite)
    out = out.absolute()
    work = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        work.mkdir()
        yield work
        _replace(work, out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise BitDeltaError(f"{out}: there is no room for it ({error.strerror}); it is as it was.") from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace(work: Path, out: Path) -> None:
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.old")
    if out.is_dir():
        os.rename(out, aside)
    try:
        os.rename(work, out)
    except OSError:
        if aside.is_dir():
            os.rename(aside, out)
        raise
    shutil.rmtree(aside, ignore_errors=True)

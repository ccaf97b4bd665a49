"""Reading a delta: its table and headers are checked whole before a tensor is read, and every part when it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from trl_grpo_ext.bitdelta.codecs import Encoded, check_values, decode
from trl_grpo_ext.bitdelta.errors import BitDeltaError, DamagedDeltaError, WrongBaseError
from trl_grpo_ext.bitdelta.fingerprint import digest
from trl_grpo_ext.bitdelta.headers import DTYPES, HeaderError, TensorHeader, read_headers
from trl_grpo_ext.bitdelta.sources import Source, read_json
from trl_grpo_ext.bitdelta.table import CONFIG_FILE, MOST_CONFIG_BYTES, Entry, check_parts, parse_table


def is_delta(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds a delta."""
    return (Path(folder) / CONFIG_FILE).is_file()


class Delta:
    """A delta in a folder.

    Args:
        folder: the folder.

    Raises:
        DamagedDeltaError: a file is missing, truncated, or says what the format does not have; with the tensor's name.
        BitDeltaError: the folder holds no delta.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not is_delta(self.folder):
            raise BitDeltaError(f"{self.folder} holds no {CONFIG_FILE}: it is no delta.")
        if (self.folder / CONFIG_FILE).stat().st_size > MOST_CONFIG_BYTES:
            raise DamagedDeltaError(f"{CONFIG_FILE} is larger than any table.")
        self.table = parse_table(read_json(self.folder / CONFIG_FILE))
        self._opened: dict[str | None, Any] = {}
        # Mapped files do not change below us; a swap back checks nothing twice.
        self._whole: set[str] = set()
        self._check_files()

    @property
    def tensors(self) -> dict[str, Entry]:
        """Entries of the table by name."""
        return self.table.tensors

    def _check_files(self) -> None:
        headers = self._headers()
        claimed = {f"{name}.{part}" for name, entry in self.tensors.items() for part in entry.parts}
        for key in headers:
            if key not in claimed:
                raise DamagedDeltaError(f"{key}: the file holds it, and the table does not know it.")
        for name, entry in self.tensors.items():
            parts = {part: headers.get(f"{name}.{part}") for part in entry.parts}
            for part, header in parts.items():
                if header is None or header.file.name != entry.file:
                    raise DamagedDeltaError(f"{name}: its part {part} is not in {entry.file}.")
            check_parts(name, entry, {part: (item.dtype, list(item.shape)) for part, item in parts.items() if item})

    def _headers(self) -> dict[str, TensorHeader]:
        first: dict[str, str] = {}
        for name, entry in self.tensors.items():
            if entry.file:
                first.setdefault(entry.file, name)
        found: dict[str, TensorHeader] = {}
        for file, name in first.items():
            try:
                found |= read_headers(self.folder / file)
                self._opened[file] = safe_open(self.folder / file, "pt")
            except FileNotFoundError as error:
                raise DamagedDeltaError(f"{name}: the file {file} that holds it is missing.") from error
            except (HeaderError, OSError, RuntimeError, ValueError) as error:
                raise DamagedDeltaError(f"{self.folder / file}: {error}") from error
            except Exception as error:
                # safetensors has an exception of its own, which it derives from Exception alone.
                raise DamagedDeltaError(f"{self.folder / file}: {error}") from error
        return found

    def encoded(self, name: str) -> Encoded:
        """Return a tensor's code, checked against its digests.

        Raises:
            DamagedDeltaError: a part is not what was written, or its values can't be.
        """
        entry = self.tensors[name]
        parts = {part: self._opened[entry.file].get_tensor(f"{name}.{part}") for part in entry.parts}
        item = Encoded(entry.codec, parts, entry.params)
        if name in self._whole:
            return item
        for part, tensor in parts.items():
            if digest(tensor) != entry.parts[part]:
                raise DamagedDeltaError(f"{name}: its part {part} is not what was written. Fetch the delta again.")
        with _named(name):
            check_values(item, entry.shape, entry.base["shape"][0] if entry.base and entry.base["shape"] else None)
        self._whole.add(name)
        return item

    def check_base(self, source: Source) -> None:
        """Check names, dtypes and shapes of a base, without reading a tensor.

        Raises:
            WrongBaseError: they are not those of the delta's base.
        """
        names = set(source.names())
        for name, entry in self.tensors.items():
            if entry.base is None:
                continue
            if name not in names:
                raise WrongBaseError(f"{name}: {source.name} has no such tensor. {self._wanted()}")
            dtype, shape = source.meta(name)
            if (dtype, shape) != (entry.base["dtype"], entry.base["shape"]):
                wanted = f"{entry.base['dtype']} {entry.base['shape']}"
                raise WrongBaseError(
                    f"{name}: {source.name} has {dtype} {shape} instead of {wanted}. {self._wanted()}"
                )

    def base_tensor(self, name: str, source: Source) -> Tensor | None:
        """Return the base's tensor, checked; None where the base has none.

        Raises:
            WrongBaseError: it is not the one that the delta was made against.
        """
        entry = self.tensors[name]
        if entry.base is None:
            return None
        tensor = source.tensor(name)
        if source.checksum(name) != entry.base["crc32"]:
            raise WrongBaseError(f"{name}: its weights in {source.name} are others. {self._wanted()}")
        return tensor

    def tensor(self, name: str, source: Source, dtype: torch.dtype | None = None) -> Tensor:
        """Return a fine-tuned tensor.

        Args:
            name: its name.
            source: the base.
            dtype: dtype of the result, for floating-point tensors; by default the fine-tuned one's.

        Raises:
            WrongBaseError: another base.
            DamagedDeltaError: a damaged part.
        """
        entry = self.tensors[name]
        own = DTYPES[entry.dtype]
        out = dtype if dtype is not None and own.is_floating_point else own
        item, base = self.encoded(name), self.base_tensor(name, source)
        with _named(name):
            return decode(item, base, entry.shape, own, out)

    def _wanted(self) -> str:
        base = self.table.base
        revision = f" at revision {base['revision']}" if base.get("revision") else ""
        return f"The delta was made against {base['id']}{revision}: give that as base."


class _named:
    """Puts a tensor's name before the message of what goes wrong inside."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, DamagedDeltaError):
            raise DamagedDeltaError(f"{self.name}: {error}. Fetch the delta again.") from error

"""Where tensors come from: checkpoint folders of safetensors files, which are mapped, never loaded whole; or a model."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import safe_open
from torch import Tensor, nn

from trl_grpo_ext.bitdelta.errors import BitDeltaError
from trl_grpo_ext.bitdelta.fingerprint import checksum
from trl_grpo_ext.bitdelta.headers import NAMES, HeaderError, TensorHeader, read_headers

# A folder, a hub id, or a model in memory.
Checkpoint: TypeAlias = str | os.PathLike[str] | nn.Module

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Source(ABC):
    """Named tensors.

    Args:
        name: path or hub id, for messages and for the delta's record.
        folder: where configuration and tokenizer lie; None for a model in memory.
        revision: commit of the hub repository, where known.
    """

    def __init__(self, name: str, folder: Path | None = None, revision: str | None = None) -> None:
        self.name, self.folder, self.revision = name, folder, revision

    @abstractmethod
    def names(self) -> list[str]:
        """Return the tensors' names."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """Return a tensor."""

    def checksum(self, name: str) -> int:
        """Return a tensor's CRC-32."""
        return checksum(self.tensor(name))

    @abstractmethod
    def meta(self, name: str) -> tuple[str, list[int]]:
        """Return dtype, as safetensors names it, and shape, without reading the tensor."""

    def config(self) -> dict[str, Any]:
        """Return the model's configuration; empty where there is none."""
        return {}


class CheckpointSource(Source):
    """The safetensors files of a folder.

    Raises:
        BitDeltaError: the folder has none, a shard is missing, or one is truncated.
    """

    def __init__(self, folder: Path, name: str | None = None, revision: str | None = None) -> None:
        super().__init__(name or str(folder), folder, revision)
        self._headers: dict[str, TensorHeader] = {}
        self._opened: dict[Path, Any] = {}
        self._checksums: dict[str, int] = {}
        for file in checkpoint_files(folder):
            try:
                self._headers |= read_headers(file)
            except (HeaderError, OSError) as error:
                raise BitDeltaError(f"{folder}: {error}") from error

    def names(self) -> list[str]:
        """Return the tensors' names, in order of files and places."""
        return list(self._headers)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, mapped from its file: do not write to it.

        Raises:
            BitDeltaError: the file's header contradicts itself.
        """
        file = self._headers[name].file
        if file not in self._opened:
            try:
                self._opened[file] = safe_open(file, "pt")
            except Exception as error:
                # safetensors has an exception of its own, which it derives from Exception alone.
                raise BitDeltaError(f"{file}: {error}") from error
        return self._opened[file].get_tensor(name)

    def checksum(self, name: str) -> int:
        """Return a tensor's CRC-32; computed once, as a resident base serves many deltas."""
        if name not in self._checksums:
            self._checksums[name] = super().checksum(name)
        return self._checksums[name]

    def meta(self, name: str) -> tuple[str, list[int]]:
        """Return dtype and shape."""
        header = self._headers[name]
        return header.dtype, list(header.shape)

    def config(self) -> dict[str, Any]:
        """Return config.json.

        Raises:
            BitDeltaError: it is no JSON object.
        """
        assert self.folder is not None
        file = self.folder / "config.json"
        return read_object(file) if file.is_file() else {}


class ModelSource(Source):
    """The tensors of a model in memory; tied ones once, under their first name."""

    def __init__(self, model: nn.Module, name: str | None = None) -> None:
        config = getattr(model, "config", None)
        super().__init__(name or getattr(config, "_name_or_path", "") or type(model).__name__)
        self.model = model
        self._tensors = dict(_without_ties(model.state_dict()))

    def names(self) -> list[str]:
        """Return the tensors' names."""
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, on the CPU."""
        return self._tensors[name].detach().cpu()

    def meta(self, name: str) -> tuple[str, list[int]]:
        """Return dtype and shape."""
        tensor = self._tensors[name]
        return NAMES[tensor.dtype], list(tensor.shape)

    def config(self) -> dict[str, Any]:
        """Return the model's configuration."""
        config: Any = getattr(self.model, "config", None)
        return config.to_dict() if hasattr(config, "to_dict") else {}


def _without_ties(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    seen: set[tuple[int, int, tuple[int, ...]]] = set()
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.numel(), tuple(tensor.stride()))
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        yield name, tensor


def read_json(file: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        BitDeltaError: it is missing, or no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BitDeltaError(f"{file}: can't be read ({' '.join(str(error).split())}).") from error


def read_object(file: Path) -> dict[str, Any]:
    """Return the mapping that a JSON file holds.

    Raises:
        BitDeltaError: it is missing, no JSON, or something else.
    """
    found = read_json(file)
    if not isinstance(found, dict):
        raise BitDeltaError(f"{file} must hold a JSON object, not {type(found).__name__}.")
    return found


def _shards(index: Path) -> list[str]:
    """The names of the files in an index; names only: an index may not reach out of its folder."""
    places = read_object(index).get("weight_map", {})
    names = list(places.values()) if isinstance(places, dict) else [places]
    wrong = [name for name in names if not isinstance(name, str) or not name or name != os.path.basename(name)]
    if wrong or not names:
        raise BitDeltaError(f"{index}: weight_map must name files beside it, not {(wrong or names)[:1]!r:.100}.")
    return sorted(set(names))


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder.

    Raises:
        BitDeltaError: there are none, or one that the index names is missing or lies elsewhere.
    """
    if (folder / INDEX).is_file():
        files = [folder / name for name in _shards(folder / INDEX)]
        missing = [file.name for file in files if not os.path.isfile(file)]
        if missing:
            raise BitDeltaError(f"{folder}: the shard {missing[0]} is missing.")
        return files
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / "adapter_config.json").is_file():
        raise BitDeltaError(
            f"{folder} is a LoRA adapter: it is exact and smaller than any delta of it. Keep it as is."
        )
    if (folder / "bitdelta_config.json").is_file():
        raise BitDeltaError(f"{folder} is a delta: export it to a plain checkpoint first.")
    if list(folder.glob("*.bin")):
        raise BitDeltaError(f"{folder} has pickled weights only; save it with save_pretrained, as safetensors, first.")
    raise BitDeltaError(f"{folder} has neither {SINGLE} nor {INDEX}.")


def local_folder(name: str, revision: str | None = None) -> tuple[Path, str | None]:
    """Return the folder of a path or hub id, and the commit for the latter.

    Raises:
        BitDeltaError: it is neither.
    """
    if os.path.isdir(name):
        return Path(name), None
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:
        message = " ".join(str(error).split())
        raise BitDeltaError(f"{name!r} is no folder here, and no repository that can be had ({message}).") from error
    return folder, folder.name


def open_source(given: Checkpoint, revision: str | None = None) -> Source:
    """Return the tensors of a model, a checkpoint folder, or a hub repository.

    Raises:
        BitDeltaError: there are none, or they are quantised.
    """
    source: Source
    if isinstance(given, nn.Module):
        if hasattr(given, "peft_config"):
            raise BitDeltaError(
                "the model has a PEFT adapter: save that; it is exact and smaller than any delta of it."
            )
        source = ModelSource(given)
    else:
        folder, commit = local_folder(os.fspath(given), revision)
        name = str(folder.resolve()) if os.path.isdir(given) else os.fspath(given)
        source = CheckpointSource(folder, name, commit)
    if source.config().get("quantization_config"):
        raise BitDeltaError(f"{source.name} is quantised: a delta is taken between the weights before quantisation.")
    return source

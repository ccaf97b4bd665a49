"""`bitdelta_config.json`: the base, the settings and one entry per tensor; read with every field checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

from trl_grpo_ext.bitdelta.codecs import FREE, layout
from trl_grpo_ext.bitdelta.errors import DamagedDeltaError
from trl_grpo_ext.bitdelta.headers import DTYPES, NAMES, is_shape, is_size, width

FORMAT_VERSION = 1
CONFIG_FILE = "bitdelta_config.json"
STEM = "bitdelta_model"
# A table of a million tensors; what is larger is none of ours.
MOST_CONFIG_BYTES = 1 << 30


@dataclass
class Entry:
    """A tensor of the fine-tuned checkpoint.

    Args:
        codec: how it is coded; see `codecs`.
        dtype: its dtype, as safetensors names it.
        shape: its shape.
        file: the file of its parts; None without parts.
        base: dtype, shape and CRC-32 of the base's tensor; None where the base has none.
        parts: digest of every part.
        params: what decoding needs.
        density: share of the weights whose bits changed.
        kappa: share of the energy that one sign mask explains; None where it was not measured.
        explained: share of the energy that the code explains with mean scales.
        fit: how the scales were found; None without scales.
        reason: why this codec.
        nbytes: bytes of the parts.
    """

    codec: str
    dtype: str
    shape: list[int]
    file: str | None = None
    base: dict[str, Any] | None = None
    parts: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    density: float = 1.0
    kappa: float | None = None
    explained: float = 1.0
    fit: str | None = None
    reason: str = ""
    nbytes: int = 0

    @property
    def numel(self) -> int:
        """Weights of the tensor."""
        return prod(self.shape)

    @property
    def full_bytes(self) -> int:
        """Bytes of the tensor itself."""
        return self.numel * width(self.dtype)


@dataclass
class Table:
    """What `bitdelta_config.json` holds.

    Args:
        base: id, revision and fingerprint of the base.
        finetuned: name of what was compressed.
        settings: the `BitDeltaConfig`.
        model_config: config.json of the fine-tuned model.
        tensors: entries by name.
        removed: tensors of the base that the fine-tuned checkpoint does not have.
        quality: what a behaviour gate has measured.
    """

    base: dict[str, Any]
    finetuned: str
    settings: dict[str, Any]
    model_config: dict[str, Any]
    tensors: dict[str, Entry]
    removed: list[str]
    quality: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON has it."""
        return {"format": "bitdelta", "format_version": FORMAT_VERSION, **asdict(self)}


def _refuse(where: str, message: str) -> None:
    raise DamagedDeltaError(f"{where}: {message}. The delta's files are damaged; make or fetch them again.")


def _check(where: str, rules: Mapping[str, bool]) -> None:
    for name, holds in rules.items():
        if not holds:
            _refuse(where, f"{name} is not what the format has")


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and value in DTYPES


def _is_file_name(value: Any) -> bool:
    plain = isinstance(value, str) and "/" not in value and "\\" not in value
    return plain and value.startswith(STEM) and value.endswith(".safetensors")


def _is_strings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _entry(name: str, data: Any) -> Entry:
    if not isinstance(data, dict) or set(data) != set(Entry.__dataclass_fields__):
        _refuse(name, "its entry has other fields than the format")
    entry = Entry(**data)
    rules = {
        "codec": isinstance(entry.codec, str),
        "dtype": _is_dtype(entry.dtype),
        "shape": is_shape(entry.shape),
        "file": entry.file is None or _is_file_name(entry.file),
        "base": entry.base is None or _is_base(entry.base),
        "parts": _is_strings(entry.parts),
        "params": isinstance(entry.params, dict) and all(map(_is_parameter, entry.params.values())),
        "density": _is_share(entry.density),
        "kappa": entry.kappa is None or _is_share(entry.kappa),
        "explained": _is_share(entry.explained),
        "fit": entry.fit is None or isinstance(entry.fit, str),
        "reason": isinstance(entry.reason, str),
        "nbytes": is_size(entry.nbytes),
    }
    _check(name, rules)
    _check_codec(name, entry)
    return entry


def _is_parameter(value: Any) -> bool:
    return is_size(value) or value in ("matrix", "row", "group")


def _is_base(value: Any) -> bool:
    known = isinstance(value, dict) and set(value) == {"dtype", "shape", "crc32"}
    return known and _is_dtype(value["dtype"]) and is_shape(value["shape"]) and is_size(value["crc32"])


def _check_codec(name: str, entry: Entry) -> None:
    """Check what a codec says of shapes: nothing larger may come out than base and parts account for."""
    if entry.codec == "raw":
        return
    if entry.base is None:
        _refuse(name, f"codec {entry.codec} needs a tensor of the base")
    assert entry.base is not None
    shape = entry.base["shape"]
    fits = entry.shape[1:] == shape[1:] and len(entry.shape) == len(shape) if entry.codec == "rows" else True
    if not fits or (entry.codec != "rows" and entry.shape != shape):
        _refuse(name, f"its shape {entry.shape} does not follow from the base's {shape}")


def parse_table(data: Any) -> Table:
    """Return the table of a parsed `bitdelta_config.json`.

    Raises:
        DamagedDeltaError: an unknown format version, or a field that is not what the format has.
    """
    if not isinstance(data, dict) or data.get("format") != "bitdelta":
        _refuse(CONFIG_FILE, "it describes no delta")
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise DamagedDeltaError(
            f"{CONFIG_FILE}: format version {version!r} is unknown; this package reads {FORMAT_VERSION}. "
            "Install the version of trl-grpo-ext that wrote it."
        )
    fields = {name: data.get(name) for name in Table.__dataclass_fields__}
    rules = {
        name: isinstance(fields[name], dict) for name in ("base", "settings", "model_config", "tensors", "quality")
    }
    rules["finetuned"] = isinstance(fields["finetuned"], str)
    rules["removed"] = isinstance(fields["removed"], list) and all(isinstance(name, str) for name in fields["removed"])
    _check(CONFIG_FILE, rules)
    base = fields["base"]
    _check(CONFIG_FILE, {"base": isinstance(base.get("id"), str) and isinstance(base.get("fingerprint"), str)})
    fields["tensors"] = {name: _entry(name, entry) for name, entry in fields["tensors"].items()}
    return Table(**fields)


def check_parts(name: str, entry: Entry, found: Mapping[str, tuple[str, list[int]]]) -> None:
    """Check dtypes and shapes of the stored parts of a tensor against its codec's layout.

    Args:
        found: dtype and shape of every part in the file.

    Raises:
        DamagedDeltaError: with the tensor's name.
    """
    try:
        wanted = layout(entry.codec, entry.params, entry.shape, DTYPES[entry.dtype])
    except DamagedDeltaError as error:
        _refuse(name, str(error))
    if set(wanted) != set(entry.parts) or set(found) != set(wanted):
        _refuse(name, f"codec {entry.codec} has the parts {sorted(wanted)}, and stored are {sorted(found)}")
    for part, (dtype, shape) in wanted.items():
        stored_dtype, stored = found[part]
        same = len(stored) == len(shape) and all(
            want in (FREE, size) for want, size in zip(shape, stored, strict=True)
        )
        if stored_dtype != NAMES[dtype] or not same:
            _refuse(name, f"its part {part} is {stored_dtype} {stored} instead of {NAMES[dtype]} {shape}")

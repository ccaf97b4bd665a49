"""Checksums: CRC-32 of the base's tensors, BLAKE2b of the delta's parts.

A delta on the wrong base is silent garbage, so every base tensor is checked, at memory speed, when it is used. CRC-32
finds accidents, not forgery: whoever can replace the base can also choose its checksum.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trl_grpo_ext.bitdelta.writing import tensor_bytes


def checksum(tensor: Tensor) -> int:
    """Return the CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor_bytes(tensor))


def digest(tensor: Tensor) -> str:
    """Return the BLAKE2b digest of a part, 16 bytes in hexadecimal."""
    return hashlib.blake2b(tensor_bytes(tensor), digest_size=16).hexdigest()


def fingerprint(entries: Mapping[str, Any]) -> str:
    """Return one digest of all base tensors: names, dtypes, shapes and checksums."""
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

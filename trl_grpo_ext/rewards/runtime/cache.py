"""Results of earlier rows, so that the same completion is not verified twice."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

_ATOMS = (str, int, float, bool, bytes, type(None))


def _is_plain(value: Any) -> bool:
    if type(value) in _ATOMS:
        return True
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return type(value) is dict and all(_is_plain(key) and _is_plain(item) for key, item in value.items())


def row_key(version: str, row: Mapping[str, Any]) -> str | None:
    """Return the cache key of a row: SHA-256 over the function's version and everything the function receives.

    Args:
        version: hash of the function.
        row: its arguments: prompt, completion and every column.

    Returns:
        The key, or None for a row that holds an object (an image, for example) that has no faithful text.
    """
    if not all(map(_is_plain, row.values())):
        return None
    text = repr((version, sorted(row.items(), key=lambda item: item[0])))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ResultCache:
    """Least recently used results; thread-safe.

    Args:
        size: largest number of results; 0 keeps none.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._results: OrderedDict[str, float | None] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._results)

    def find(self, key: str | None) -> tuple[bool, float | None]:
        """Return whether there is a result, and the result."""
        with self._lock:
            if key is None or key not in self._results:
                return False, None
            self._results.move_to_end(key)
            return True, self._results[key]

    def store(self, key: str | None, result: float | None) -> None:
        """Keep a result; the one not used for longest makes room."""
        if key is None:
            return
        with self._lock:
            self._results[key] = result
            self._results.move_to_end(key)
            while len(self._results) > self._size:
                self._results.popitem(last=False)

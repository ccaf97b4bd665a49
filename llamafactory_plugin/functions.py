"""`path/to/file.py:function` in `grpo_config`, made importable as `module:function`."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llamafactory_plugin.errors import UsageError


def importable(key: str, spec: str, folders: Sequence[Path]) -> str:
    """The specification of a function as `module:function`; one that names no file is returned as it is.

    Args:
        key: the YAML key, for errors.
        spec: `package.module:function`, or `path/to/file.py:function`.
        folders: where a relative path is looked up, in this order.

    Raises:
        UsageError: for a file that is not there, or fails at import.
    """
    path, _, function = spec.rpartition(":")
    if not path.endswith(".py"):
        return spec
    found = next((folder / path for folder in folders if os.path.isfile(folder / path)), None)
    if found is None:
        searched = ", ".join(map(str, folders))
        raise UsageError(f"{key}: there is no file {path!r} in {searched}; correct it, or give an absolute path.")
    return f"{_imported(key, found.resolve())}:{function}"


def _imported(key: str, file: Path) -> str:
    """The name in `sys.modules` under which a file is imported, once per process."""
    # The hash keeps apart files of the same name in two folders.
    name = f"llamafactory_grpo_file_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return name
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # its name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(
            f"{key}: {file} fails at import with {type(error).__name__}: {error}; correct the file, or set PYTHONPATH "
            "for what it imports."
        ) from error
    return name

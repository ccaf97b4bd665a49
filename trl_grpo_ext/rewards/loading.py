"""Reward functions from Python files: `path/to/file.py:function`."""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from trl_grpo_ext._suggest import did_you_mean


def find_reward_file(path: str, search_directories: Iterable[str | Path]) -> Path:
    """Return the file that a path names: in the first of the folders that has it, then in the working directory.

    Raises:
        ValueError: no folder has it.
    """
    directories = [Path(directory).resolve() for directory in (*search_directories, Path.cwd())]
    folders = list(dict.fromkeys(directories))
    # Joining an absolute path gives that path, whatever stands before it.
    for folder in folders:
        candidate = folder / Path(path).expanduser()
        if os.path.isfile(candidate):
            return candidate.resolve()
    if Path(path).expanduser().is_absolute():
        raise ValueError(f"Reward file {path!r} does not exist.")
    raise ValueError(
        f"Reward file {path!r} does not exist in any folder searched: {', '.join(map(str, folders))}. "
        "Correct it, or give an absolute path."
    )


def _module_name(file: Path) -> str:
    # The hash keeps apart files of the same name in two folders.
    return f"trl_grpo_ext_reward_file_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"


def _import_error(file: Path, error: BaseException) -> ValueError:
    hint = ""
    if isinstance(error, ImportError):
        hint = " The file's own folder is not on the import path: install what it imports, or set PYTHONPATH."
    return ValueError(f"Reward file {str(file)!r} fails at import with {type(error).__name__}: {error}.{hint}")


def _load_module(file: Path) -> ModuleType:
    """Import a file once per process, under a name of its own in `sys.modules` (pickle finds its functions there)."""
    name = _module_name(file)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"Reward file {str(file)!r} is not a Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_error(file, error) from error
    return module


def load_reward(spec: str, search_directories: Iterable[str | Path]) -> Any:
    """Return the object that `path/to/file.py:function` names. Whether it can be a reward is not checked here.

    Raises:
        ValueError: no function named, a missing file, a file that fails at import, or a name that the file lacks.
    """
    path, _, function = spec.rpartition(":")
    if not path or not function:
        raise ValueError(f"Reward {spec!r} names no function; write it as 'path/to/file.py:function'.")
    file = find_reward_file(path, search_directories)
    module = _load_module(file)
    if not hasattr(module, function):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ValueError(
            f"Reward file {str(file)!r} has no {function!r}{did_you_mean(function, names) or '.'} "
            f"Callables in it: {', '.join(sorted(names)) or 'none'}."
        )
    return getattr(module, function)

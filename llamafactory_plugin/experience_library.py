"""The file of `experience_library`: checked before the model is loaded, opened for the run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llamafactory_plugin.errors import UsageError
from trl_grpo_ext.experience import ExperienceConfig, ExperienceError, ExperienceLibrary

# Group sizes that `ExperienceConfig` takes.
GROUP_SIZES = range(4, 33)


def is_main() -> bool:
    """Whether this process is the one that reads and writes the library; torchrun says so before there is a group."""
    return os.environ.get("RANK", "0") == "0"


def new_config(arguments: Any) -> ExperienceConfig:
    """The settings of a library that the run makes.

    Raises:
        UsageError: an unknown setting, or a value outside its range.
    """
    size = {"group_size": arguments.grpo_group_size} if arguments.grpo_group_size in GROUP_SIZES else {}
    try:
        return ExperienceConfig.from_mapping(size | arguments.experience_config)
    except ValueError as error:
        raise UsageError(f"experience_config: {str(error).removeprefix('ExperienceConfig: ')}") from error


def check_library(run: Any) -> None:
    """Refuse a library that the run can't use; its file is read only, and none is made.

    Raises:
        UsageError: wrong settings, no file to read, no folder, a file that is no library or has other settings.
    """
    new_config(run.finetuning_args)
    if is_main():
        _check_file(Path(run.finetuning_args.experience_library), run)


def _check_file(path: Path, run: Any) -> None:
    if os.path.exists(path):
        _check_settings(path, run.finetuning_args.experience_config)
    elif run.finetuning_args.experience_read_only:
        raise UsageError(
            f"experience_library: there is no {path} to read; give an existing file, or remove experience_read_only."
        )
    elif not os.path.isdir(path.parent) and not _is_output(path.parent, run):
        raise UsageError(
            f"experience_library: the folder {path.parent} does not exist; create it, or name a file in output_dir."
        )


def _is_output(folder: Path, run: Any) -> bool:
    return folder.absolute() == Path(run.training_args.output_dir).absolute()


def _check_settings(path: Path, wanted: Mapping[str, Any]) -> None:
    try:
        with ExperienceLibrary(path, create=False) as library:
            known = dataclasses.asdict(library.config)
    except (ExperienceError, OSError) as error:
        raise UsageError(f"experience_library: {error}") from error
    for name, value in wanted.items():
        if known[name] != value:
            raise UsageError(
                f"experience_config: {name} is {known[name]!r} in {path} and {value!r} here; remove it to use the file's, or "
                "name a new file in experience_library."
            )


@contextmanager
def opened_library(run: Any) -> Iterator[ExperienceLibrary | str | None]:
    """The library of a run, closed at its end: open on the main process, its path on others; None without one.

    Raises:
        UsageError: the file can't be used.
    """
    path = run.finetuning_args.experience_library
    if path is None or not is_main():
        yield path
        return
    if _is_output(Path(path).parent, run):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    config = None if os.path.exists(path) else new_config(run.finetuning_args)
    try:
        library = ExperienceLibrary(path, config)
    except (ExperienceError, OSError) as error:
        raise UsageError(f"experience_library: {error}") from error
    with library:
        yield library

"""The YAML file of a run, and what the command line puts in the place of its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_grpo_ext.training_free.run_settings import RunSettings


def read_run_settings(path: Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Return the settings of a run's file.

    Args:
        path: a YAML file, or a JSON one.
        overrides: "key=value" with the value in YAML; "config.num_generations=8" goes into a section.

    Raises:
        ValueError: naming the key.
        ImportError: a backend's package is not installed.
    """
    return RunSettings.from_mapping(read_mapping(path, overrides), path.absolute().parent)


def read_mapping(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return what stands in a run's file, with the overrides in it.

    Raises:
        ValueError: no such file, no YAML mapping, or an override that is none.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read ({error}).") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} must hold a mapping of keys (policy, dataset, reward, output_dir, ...).")
    return overridden(values, overrides)


def overridden(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of nested mappings with "a.b=value" put in, each value read as YAML.

    Raises:
        ValueError: no "=", no YAML, or a section that is no mapping.
    """
    found = dict(values)
    for item in overrides:
        name, equals, text = item.partition("=")
        if not equals or not all(name.split(".")):
            raise ValueError(f"--set {item}: write KEY=VALUE, such as config.num_generations=8.")
        found = _put(found, name.split("."), _value(item, text), item)
    return found


def _value(item: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"--set {item}: the value is no YAML ({' '.join(str(error).split())}).") from error


def _put(values: Mapping[str, Any], names: Sequence[str], value: Any, item: str) -> dict[str, Any]:
    if len(names) == 1:
        return {**values, names[0]: value}
    below = values.get(names[0])
    if not isinstance(below, Mapping | None):
        raise ValueError(
            f"--set {item}: {names[0]} is {below!r} in the file and has no keys; write it as a mapping there."
        )
    return {**values, names[0]: _put(below or {}, names[1:], value, item)}

"""Refuses the wrong environment, and skips with a reason what the environment at hand cannot run.

The Makefile says in `EXPECTED_LINE` and `EXPECTED_TRANSFORMERS` what it has installed. Without that check a broken
environment would skip the tests written for it, and the run would look green.
"""

import importlib.util
import os
import sys
from importlib import metadata

import pytest


def installed_line() -> str:
    """`"a"` beside LLaMA-Factory's TRL 0.24, else `"b"`."""
    return "a" if metadata.version("trl").startswith("0.24.") else "b"


def pytest_configure(config: pytest.Config) -> None:
    # `llamafactory-cli` and `torchrun` are started by name, as users do, also when the environment is not activated.
    os.environ["PATH"] = os.path.join(sys.prefix, "bin") + os.pathsep + os.environ["PATH"]
    found = {"EXPECTED_LINE": installed_line(), "EXPECTED_TRANSFORMERS": metadata.version("transformers")}
    for variable, value in found.items():
        expected = os.environ.get(variable, value)
        if expected != value:
            raise pytest.UsageError(f"{variable}={expected}, but this environment has {value}: {sys.prefix}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {}
    if installed_line() != "a" or importlib.util.find_spec("llamafactory") is None:
        reasons["line_a"] = "needs LLaMA-Factory and TRL 0.24 (make venv-a)"
    if installed_line() != "b":
        reasons["line_b"] = "needs TRL 1.16 or later (make venv-b)"
    if any("gpu" in item.keywords for item in items) and not _has_cuda():
        reasons["gpu"] = "needs a CUDA device"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()

"""What pip would do: these tests ask the package index, and install nothing.

`pip install trl-grpo-ext[extra]` beside somebody's working LLaMA-Factory must not touch what makes it work.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .conftest import Environment, create_environment

pytestmark = pytest.mark.line_a

UNTOUCHABLE = {"torch", "transformers", "trl", "llamafactory", "peft", "accelerate", "datasets"}
# Every extra, with what it must bring. `vllm` stands below: it cannot leave torch alone.
EXTRAS = {
    "": set(),
    "llamafactory": set(),
    "json": {"jsonschema"},
    "math": {"math-verify"},
    "judge": {"openai"},
    "retrieval": {"sentence-transformers"},
    "reasoning-gym": {"reasoning-gym"},
    "endpoint": {"httpx"},
    "report": {"matplotlib", "plotly", "rich"},
    "serve": {"fastapi", "httpx", "uvicorn"},
    "deepspeed": {"deepspeed"},
    "dev": set(),
}


def dry_run(report: Path, *requirements: str, python: str = sys.executable) -> dict[str, dict[str, Any]]:
    """Name -> metadata of every package that pip would install into the environment of `python`."""
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--dry-run"]
    result = subprocess.run([*command, "--report", str(report), *requirements], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    found = (item["metadata"] for item in json.loads(report.read_text())["install"])
    return {canonicalize_name(item["name"]): item for item in found}


@pytest.fixture(scope="module")
def empty_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("empty") / "environment"
    return create_environment(root, {}).python


def test_every_extra_is_covered(wheel: Path) -> None:
    declared = set(metadata.metadata("trl-grpo-ext").get_all("Provides-Extra") or ())
    assert declared == set(EXTRAS) - {""} | {"vllm"}


def test_a_foreign_build_of_an_older_torch_stays(
    new_environment: Callable[..., Environment], wheel: Path, tmp_path: Path
) -> None:
    """Somebody's checkout of LLaMA-Factory runs on the oldest torch that it accepts, in a build for their driver."""
    files = {}
    for item in metadata.distributions():
        if item.name != "trl-grpo-ext":
            text = item.read_text("METADATA") or ""
            if item.name == "torch":
                text = text.replace(f"\nVersion: {item.version}\n", "\nVersion: 2.4.0+cu121\n")
                assert "+cu121" in text
            files[f"{item.name.replace('-', '_')}-{item.version}.dist-info/METADATA"] = text
    environment = new_environment(files)
    assert list(dry_run(tmp_path / "report.json", str(wheel), python=environment.python)) == ["trl-grpo-ext"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_beside_llamafactory_nothing_installed_is_changed(extra: str, wheel: Path, tmp_path: Path) -> None:
    requirement = f"{wheel}[{extra}]" if extra else str(wheel)
    changes = dry_run(tmp_path / "report.json", requirement)
    changes.pop("trl-grpo-ext", None)
    installed = {canonicalize_name(item.name) for item in metadata.distributions()}
    assert not UNTOUCHABLE & set(changes)
    assert not installed & set(changes), "installed packages that pip would replace"
    assert EXTRAS[extra] <= installed | set(changes)


def test_vllm_extra_asks_for_the_one_vllm_of_trl_which_replaces_torch(wheel: Path, tmp_path: Path) -> None:
    """Not our choice and not hidden: TRL 0.24 pins vLLM 0.10.2, and that pins torch 2.8.0 (see docs/install.md)."""
    asked = dry_run(tmp_path / "own.json", "--no-deps", f"{wheel}[vllm]")["trl-grpo-ext"]["requires_dist"]
    assert any(line.startswith("trl[vllm]") for line in asked)
    trl = [Requirement(line) for line in metadata.requires("trl") or ()]
    (vllm,) = (item for item in trl if item.name == "vllm" and item.marker.evaluate({"extra": "vllm"}))
    assert str(vllm.specifier) == "==0.10.2"
    pinned = dry_run(tmp_path / "vllm.json", "--no-deps", "vllm==0.10.2")["vllm"]["requires_dist"]
    (torch,) = (item for item in map(Requirement, pinned) if item.name == "torch")
    assert str(torch.specifier) == "==2.8.0"


@pytest.mark.slow  # `make venv-a` does the same each time, and the tests of the stock command use what it found
def test_llamafactory_extra_from_nothing_is_a_set_that_works(wheel: Path, empty_python: str, tmp_path: Path) -> None:
    """The versions with which test_command_line.py runs the stock command, that is those of this environment."""
    resolved = dry_run(tmp_path / "report.json", f"{wheel}[llamafactory]", python=empty_python)
    here = {name: metadata.version(name) for name in (*UNTOUCHABLE, "torchaudio", "torchvision", "torchdata")}
    found = {name: resolved[name]["version"] for name in here}
    assert found == here, "the index has moved on since this environment was made: make clean, then make test"


def test_without_extras_it_is_current_trl_and_no_llamafactory(wheel: Path, empty_python: str, tmp_path: Path) -> None:
    resolved = dry_run(tmp_path / "report.json", str(wheel), "torch==2.13.0", python=empty_python)
    assert resolved["trl"]["version"].startswith("1.16.")
    assert "llamafactory" not in resolved
    assert "trl-grpo-ext" in resolved

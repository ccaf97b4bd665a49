"""The start-up hook in real interpreters: where it works, where it must not, and what it costs others."""

import importlib
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import PRINT_STAGES, REPOSITORY, STAND_IN, Environment, build

pytestmark = pytest.mark.line_a

ACTIVE = "import sys; print([type(f).__name__ for f in sys.meta_path].count('PatchingFinder'))"
NewEnvironment = Callable[..., Environment]


def printed(environment: Environment, *arguments: str, **variables: str) -> str:
    """What a quiet, successful run prints."""
    result = environment.run(*arguments, **variables)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout.strip()


def test_active_after_wheel_install(environment: Environment) -> None:
    assert printed(environment, "-c", PRINT_STAGES) == "grpo"


def test_active_after_editable_install(new_environment: NewEnvironment, editable_wheel: Path) -> None:
    environment = new_environment()
    environment.install(editable_wheel)
    assert printed(environment, "-c", "import llamafactory_plugin as p; print(p.__path__[0])") == str(
        REPOSITORY / "llamafactory_plugin"
    )
    assert printed(environment, "-c", PRINT_STAGES) == "grpo"


def test_active_in_a_child_process(environment: Environment) -> None:
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {PRINT_STAGES!r}], check=True)"
    assert printed(environment, "-c", parent) == "grpo"


def test_gone_after_uninstall(new_environment: NewEnvironment, wheel: Path) -> None:
    environment = new_environment()
    environment.install(wheel)
    environment.pip("uninstall", "--quiet", "--yes", "trl-grpo-ext")
    left = [path.name for path in environment.site_packages.rglob("*") if "llamafactory" not in path.parts]
    assert not [name for name in left if "grpo" in name or "llamafactory_plugin" in name]
    assert printed(environment, "-c", PRINT_STAGES) == "None"


def test_uninstall_of_an_editable_install_leaves_nothing(
    new_environment: NewEnvironment, editable_wheel: Path
) -> None:
    environment = new_environment({})
    before = sorted(path.name for path in environment.site_packages.rglob("*"))
    environment.install(editable_wheel)
    environment.pip("uninstall", "--quiet", "--yes", "trl-grpo-ext")
    assert sorted(path.name for path in environment.site_packages.rglob("*")) == before


@pytest.mark.parametrize("value", ["0", "false", "No", "OFF"])
def test_environment_variable_switches_it_off(environment: Environment, value: str) -> None:
    assert printed(environment, "-c", PRINT_STAGES, LLAMAFACTORY_GRPO=value) == "None"


@pytest.mark.parametrize("value", ["1", "true", ""])
def test_other_values_of_the_variable_leave_it_on(environment: Environment, value: str) -> None:
    assert printed(environment, "-c", PRINT_STAGES, LLAMAFACTORY_GRPO=value) == "grpo"


def test_without_site_it_is_inactive_and_isolated_it_is_active(environment: Environment) -> None:
    assert printed(environment, "-S", "-c", ACTIVE) == "0"
    assert printed(environment, "-I", "-c", ACTIVE) == "1"


def test_interpreter_start_imports_nothing_but_the_hook(own_environment: Environment) -> None:
    modules = "import sys; print(*sorted(sys.modules))"
    with_hook = set(printed(own_environment, "-c", modules).split())
    for name in ("llamafactory_grpo.pth", "llamafactory_grpo.start"):
        (own_environment.site_packages / name).unlink()
    without = set(printed(own_environment, "-c", modules).split())
    assert with_hook - without == {"llamafactory_plugin", "llamafactory_plugin._boot"}


def test_start_file_is_read_after_those_of_editable_installs(
    new_environment: NewEnvironment, editable_wheel: Path
) -> None:
    environment = new_environment({})
    environment.install(editable_wheel)
    texts = {path.name: path.read_text() for path in environment.site_packages.glob("*.pth")}
    (ours,) = (name for name, text in texts.items() if "install()" in text)
    names = set(texts) - {ours}
    assert names, "hatchling's editable install is a .pth file too"
    # What setuptools and pdm write for an editable LLaMA-Factory.
    assert all(name < ours for name in names | {"__editable__.llamafactory-0.9.5.pth", "_llamafactory.pth"})


def test_start_file_follows_pep_829_and_names_what_the_pth_runs(environment: Environment) -> None:
    start = (environment.site_packages / "llamafactory_grpo.start").read_text(encoding="utf-8")
    entries = [line for line in start.splitlines() if line.strip() and not line.startswith("#")]
    assert len(entries) == 1
    match = re.fullmatch(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)", entries[0])
    assert match, entries
    module, function = match.groups()
    assert callable(getattr(importlib.import_module(module), function))
    pth = (environment.site_packages / "llamafactory_grpo.pth").read_text(encoding="utf-8")
    assert pth == f"import {module}; {module}.{function}()\n"


def test_other_modules_and_their_loaders_are_untouched(own_environment: Environment) -> None:
    own_environment.write({"llamafactory/extras/misc.py": ""})
    code = """
import importlib.util, json, llamafactory.extras.misc as misc, llamafactory.extras.constants as constants
for module in (json, misc, constants):
    print(type(module.__loader__).__name__, type(module.__spec__.loader).__name__)
"""
    assert set(printed(own_environment, "-c", code).splitlines()) == {"SourceFileLoader SourceFileLoader"}


IN_MEMORY_FINDER = """
import importlib.util, sys
class InMemory:
    def find_spec(self, name, path=None, target=None):
        if name == "llamafactory.extras.constants":
            return importlib.util.spec_from_loader(name, self)
    def create_module(self, spec): return None
    def exec_module(self, module): module.TRAINING_STAGES = {"from": "memory"}
sys.meta_path.append(InMemory()) if APPEND else sys.meta_path.insert(0, InMemory())
"""


def test_a_module_that_another_finder_serves_is_patched_too(new_environment: NewEnvironment, wheel: Path) -> None:
    files = {name: text for name, text in STAND_IN.items() if "constants" not in name}
    environment = new_environment(files)
    environment.unpack(wheel)
    code = IN_MEMORY_FINDER.replace("APPEND", "True") + (
        "from llamafactory.extras.constants import TRAINING_STAGES; print(TRAINING_STAGES)"
    )
    assert printed(environment, "-c", code) == str({"from": "memory", "GRPO": "grpo"})


def test_a_finder_that_asks_all_the_others_does_not_recurse(environment: Environment) -> None:
    code = """
import sys
class AsksTheOthers:
    def find_spec(self, name, path=None, target=None):
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)):
                return spec
sys.meta_path.insert(0, AsksTheOthers())
"""
    assert printed(environment, "-c", code + PRINT_STAGES) == "grpo"


def test_reload_patches_the_fresh_module(environment: Environment) -> None:
    code = """
import importlib, llamafactory.extras.constants as constants
print(importlib.reload(constants).TRAINING_STAGES["GRPO"])
"""
    assert printed(environment, "-c", code) == "grpo"


def test_install_is_idempotent_and_patches_what_is_imported_already(environment: Environment) -> None:
    code = """
import sys, llamafactory.extras.constants as constants
from llamafactory_plugin import _boot
print(constants.TRAINING_STAGES.get("GRPO"))
_boot.insert_finder(); _boot.insert_finder()
print(constants.TRAINING_STAGES.get("GRPO"), [type(f).__name__ for f in sys.meta_path].count("PatchingFinder"))
"""
    assert printed(
        environment, "-S", "-c", f"import sys; sys.path.append({str(environment.site_packages)!r})" + code
    ) == ("None\ngrpo 1")


def test_a_half_imported_module_is_told_and_not_patched(own_environment: Environment) -> None:
    own_environment.write(
        {
            "llamafactory/extras/constants.py": "from llamafactory_plugin import _boot\n_boot.insert_finder()\n"
            "TRAINING_STAGES = {}\n"
        }
    )
    result = own_environment.run("-c", PRINT_STAGES, LLAMAFACTORY_GRPO="0")
    assert (result.returncode, result.stdout.strip()) == (0, "None")
    assert "llamafactory.extras.constants was half imported" in result.stderr


def test_a_broken_plugin_does_not_stop_llamafactory(own_environment: Environment) -> None:
    own_environment.write({"llamafactory_plugin/register.py": "raise RuntimeError('broken on purpose')\n"})
    result = own_environment.run("-c", PRINT_STAGES)
    assert (result.returncode, result.stdout.strip()) == (0, "None")
    assert "llamafactory.extras.constants is not patched" in result.stderr
    assert "RuntimeError: broken on purpose" in result.stderr


def test_an_error_of_the_module_itself_passes_unchanged(own_environment: Environment) -> None:
    own_environment.write({"llamafactory/extras/constants.py": "raise KeyError('their own')\n"})
    code = """
try:
    import llamafactory.extras.constants
except KeyError as error:
    print(error, getattr(error, "__notes__", []))
"""
    assert printed(own_environment, "-c", code) == "'their own' []"


def test_the_error_of_an_unsupported_llamafactory_says_what_grpo_needs(own_environment: Environment) -> None:
    old = STAND_IN["llamafactory-0.9.5.dist-info/METADATA"].replace("0.9.5", "0.9.3")
    own_environment.write(
        {
            "llamafactory-0.9.5.dist-info/METADATA": old,
            "llamafactory/hparams/parser.py": "raise ImportError('trl<=0.9.6 is required')\n",
            "llamafactory/train/tuner.py": "import llamafactory.hparams.parser\n",
        }
    )
    result = own_environment.run("-c", "import llamafactory.train.tuner")
    assert "ImportError: trl<=0.9.6 is required" in result.stderr
    assert result.stderr.count("`stage: grpo` needs llamafactory 0.9.4 or later") == 1


def test_wheel_from_the_source_archive_is_the_wheel_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    archive = build("sdist", tmp_path)
    with tarfile.open(archive) as content:
        content.extractall(tmp_path, filter="data")
    rebuilt = build("wheel", tmp_path, archive.with_name(archive.name.removesuffix(".tar.gz")))
    names, rebuilt_names = zipfile.ZipFile(wheel).namelist(), zipfile.ZipFile(rebuilt).namelist()
    assert sorted(names) == sorted(rebuilt_names)
    assert {"llamafactory_grpo.pth", "llamafactory_grpo.start", "llamafactory_plugin/_worker.py"} <= set(names)

"""Real wheels, real virtual environments, real interpreters; only LLaMA-Factory is a stand-in of three modules."""

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# Only what the patches of `extras.constants` touch; the other two need the real one (test_command_line.py).
STAND_IN = {
    "llamafactory/__init__.py": "",
    "llamafactory/extras/__init__.py": "",
    "llamafactory/extras/constants.py": 'TRAINING_STAGES = {"Supervised Fine-Tuning": "sft"}\n',
    "llamafactory/hparams/__init__.py": "",
    "llamafactory/train/__init__.py": "",
    "llamafactory-0.9.5.dist-info/METADATA": "Metadata-Version: 2.1\nName: llamafactory\nVersion: 0.9.5\n",
}
PRINT_STAGES = "from llamafactory.extras.constants import TRAINING_STAGES; print(TRAINING_STAGES.get('GRPO'))"


@dataclass
class Environment:
    """A virtual environment without pip, served by the pip of the tests' own interpreter."""

    root: Path

    @property
    def python(self) -> str:
        return str(self.root / "bin" / "python")

    @property
    def site_packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.root / "lib" / version / "site-packages"

    def run(self, *arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python in a folder without packages, with no variable that could reach it."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        environment = {**kept, "PATH": f"{self.root / 'bin'}:/usr/bin:/bin", **variables}
        command = [self.python, *arguments]
        return subprocess.run(command, env=environment, cwd=cwd or self.root, capture_output=True, text=True)

    def pip(self, *arguments: str) -> None:
        """Run pip on this environment, without an index."""
        command = [sys.executable, "-m", "pip", "--python", self.python, *arguments]
        subprocess.run(command, check=True, capture_output=True, text=True)

    def install(self, wheel: Path, *options: str) -> None:
        self.pip("install", "--quiet", "--no-deps", "--no-index", *options, str(wheel))

    def unpack(self, wheel: Path) -> None:
        """The files that pip would write, without a record of them."""
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.site_packages)

    def write(self, files: dict[str, str]) -> None:
        """Write modules into site-packages."""
        for name, text in files.items():
            path = self.site_packages / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def build(kind: str, folder: Path, source: Path = REPOSITORY) -> Path:
    """What pip would install for a plain (`wheel`) or an editable (`editable`) install, or the `sdist`."""
    code = f"import hatchling.build as b, sys; print(b.build_{kind}(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(folder)]
    result = subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    return folder / result.stdout.split()[-1]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def editable_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("editable", tmp_path_factory.mktemp("editable"))


def create_environment(root: Path, files: dict[str, str]) -> Environment:
    """A fresh environment with `files` in its site-packages."""
    venv.create(root, symlinks=True)
    environment = Environment(root)
    environment.write(files)
    return environment


@pytest.fixture
def new_environment(tmp_path: Path) -> Callable[..., Environment]:
    """Makes an environment for this test alone: `new_environment(files)`."""

    def create(files: dict[str, str] = STAND_IN) -> Environment:
        return create_environment(tmp_path / "environment", files)

    return create


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    """Where pip has installed the wheel beside the stand-in for LLaMA-Factory; tests only read it."""
    created = create_environment(tmp_path_factory.mktemp("shared") / "environment", STAND_IN)
    created.install(wheel)
    return created


@pytest.fixture
def own_environment(new_environment: Callable[..., Environment], wheel: Path) -> Environment:
    """The same for one test, which may change it; unpacked, since pip costs a second each time."""
    created = new_environment()
    created.unpack(wheel)
    return created

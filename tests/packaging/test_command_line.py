"""`python -m llamafactory_plugin`: the way to train without a start-up file, and the doctor."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import REPOSITORY, STAND_IN, Environment

pytestmark = pytest.mark.line_a

# Does what LLaMA-Factory's does: runs `__file__` as a script in a child when FORCE_TORCHRUN is set.
LAUNCHER = """
import os, subprocess, sys
def launch():
    print("launched", *sys.argv[1:])
    command = sys.argv.pop(1)
    if os.environ.get("FORCE_TORCHRUN") == "1":
        sys.exit(subprocess.run([sys.executable, __file__, *sys.argv[1:]]).returncode)
    from llamafactory.train.tuner import run_exp
    run_exp()
"""
TUNER = """
import os, sys
from llamafactory.extras.constants import TRAINING_STAGES
def run_exp():
    print("stage", TRAINING_STAGES.get("GRPO"), "with", *sys.argv[1:], "in", os.path.basename(sys.argv[0]), sys.path[0])
"""
TRAINING = {**STAND_IN, "llamafactory/launcher.py": LAUNCHER, "llamafactory/train/tuner.py": TUNER}
NewEnvironment = Callable[..., Environment]


@pytest.mark.parametrize("arguments", [(), ("tarin",), ("doctor", "extra")])
def test_no_or_unknown_command_prints_the_usage(environment: Environment, arguments: tuple[str, ...]) -> None:
    result = environment.run("-m", "llamafactory_plugin", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: python -m llamafactory_plugin train CONFIG.yaml")


def test_help_is_no_error(environment: Environment) -> None:
    result = environment.run("-m", "llamafactory_plugin", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "doctor" in result.stdout


@pytest.mark.parametrize("torchrun", ["0", "1"])
def test_train_is_patched_without_the_start_file(new_environment: NewEnvironment, wheel: Path, torchrun: str) -> None:
    environment = new_environment(TRAINING)
    environment.unpack(wheel)
    environment.write({"llamafactory_grpo.pth": "", "llamafactory_grpo.start": ""})
    arguments = ("-m", "llamafactory_plugin", "train", "cfg.yaml", "x=1")
    result = environment.run(*arguments, FORCE_TORCHRUN=torchrun, LLAMAFACTORY_GRPO="0", PYTHONUNBUFFERED="1")
    assert (result.returncode, result.stderr) == (0, "")
    launched, trained = result.stdout.splitlines()
    assert launched == "launched train cfg.yaml x=1"
    assert trained.startswith(
        "stage grpo with cfg.yaml x=1 in " + ("_worker.py" if torchrun == "1" else "__main__.py")
    )
    # The plugin's own folder first on sys.path would let its `dataset` and `errors` shadow the user's modules.
    assert not trained.endswith("llamafactory_plugin")


def test_worker_finds_a_plugin_that_is_on_no_search_path(new_environment: NewEnvironment) -> None:
    environment = new_environment(TRAINING)
    worker = REPOSITORY / "llamafactory_plugin" / "_worker.py"
    result = environment.run(str(worker), "cfg.yaml")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("stage grpo with cfg.yaml")


def test_train_without_llamafactory_is_one_sentence(new_environment: NewEnvironment, wheel: Path) -> None:
    environment = new_environment({})
    environment.unpack(wheel)
    result = environment.run("-m", "llamafactory_plugin", "train", "cfg.yaml")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: LLaMA-Factory is not installed in this environment: run `pip install")
    assert result.stderr.count("\n") == 1


def doctor(environment: Environment, *flags: str, **variables: str) -> tuple[int, str]:
    result = environment.run(*flags, "-m", "llamafactory_plugin", "doctor", **variables)
    assert result.stderr == ""
    return result.returncode, result.stdout


HEALTHY = {
    **TRAINING,
    "torchaudio.py": "",
    "llamafactory/hparams/finetuning_args.py": "class FinetuningArguments: pass\n",
    "llamafactory/hparams/parser.py": "",
}


def test_doctor_names_a_patch_that_failed(new_environment: NewEnvironment, wheel: Path) -> None:
    environment = new_environment(HEALTHY)
    environment.unpack(wheel)
    status, text = doctor(environment)
    assert status == 1
    assert "llamafactory.extras.constants: applied" in text
    assert "llamafactory.hparams.parser could not be patched (" in text


def test_doctor_says_why_the_hook_is_inactive(own_environment: Environment) -> None:
    site_packages = str(own_environment.site_packages)
    assert "start-up hook   active (" + site_packages in doctor(own_environment)[1]
    assert "switched off by LLAMAFACTORY_GRPO=off: unset it" in doctor(own_environment, LLAMAFACTORY_GRPO="off")[1]
    assert "started with -S" in doctor(own_environment, "-S", PYTHONPATH=site_packages)[1]
    (own_environment.site_packages / "llamafactory_grpo.pth").write_text("")
    assert "is there but did not take effect" in doctor(own_environment)[1]
    (own_environment.site_packages / "llamafactory_grpo.pth").unlink()
    status, text = doctor(own_environment)
    assert status == 1
    assert "start-up hook   not active (no llamafactory_grpo.pth in a site-packages folder)" in text
    assert "python -m llamafactory_plugin train CONFIG.yaml" in text


def test_doctor_after_install_into_a_target_folder(
    new_environment: NewEnvironment, wheel: Path, tmp_path: Path
) -> None:
    environment = new_environment()
    environment.install(wheel, "--target", str(tmp_path / "target"))
    status, text = doctor(environment, PYTHONPATH=str(tmp_path / "target"))
    assert status == 1
    assert "as after `pip install --target` or with PYTHONPATH" in text


def test_doctor_without_llamafactory(new_environment: NewEnvironment, wheel: Path) -> None:
    environment = new_environment({})
    environment.unpack(wheel)
    status, text = doctor(environment)
    assert status == 1
    assert text.count("PROBLEM") == 1
    assert (
        'PROBLEM         LLaMA-Factory is not installed in this environment: run `pip install "trl-grpo-ext[' in text
    )


def test_doctor_on_a_torchaudio_that_does_not_load(own_environment: Environment) -> None:
    own_environment.write({"torchaudio.py": "raise OSError('libcudart.so.13: cannot open')\n"})
    status, text = doctor(own_environment)
    assert status == 1
    assert "torchaudio does not load beside torch not installed (libcudart.so.13: cannot open)" in text
    assert 'run `pip install "torch>=2.6,<2.13" torchaudio torchvision`' in text


@pytest.mark.parametrize(
    ("package", "version", "right"),
    [
        ("llamafactory", "0.9.3", False),
        ("llamafactory", "0.9.4", True),
        ("llamafactory", "0.9.6.dev0", True),
        ("llamafactory", "0.10.0", False),
        ("trl", "0.23.1", False),
        ("trl", "0.24.0", True),
        ("trl", "0.25.0", False),
        ("trl", "1.16.0", False),
    ],
)
def test_versions_outside_the_window_are_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, package: str, version: str, right: bool
) -> None:
    from llamafactory_plugin import doctor

    monkeypatch.setattr(doctor, "installed_version", {package: version}.get)
    problems = doctor.version_problems()
    assert bool(problems) is not right
    if not right:
        assert problems[0].startswith(f"`stage: grpo` needs {package} 0.")
        assert f'and {version} is installed: run `pip install "{package}>=' in problems[0]


def test_doctor_finds_line_a_well() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "llamafactory_plugin", "doctor"], capture_output=True, text=True, cwd="/"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(": applied") == 4
    assert result.stdout.endswith("all is well\n")


STAGES = "--stage {pt,sft,rm,ppo,dpo,kto,grpo}"


def help_of(*command: str, **variables: str) -> str:
    """What the real LLaMA-Factory prints for `train -h`, on one line."""
    result = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, cwd="/")
    assert result.returncode == 0, result.stderr[-2000:]
    return " ".join(result.stdout.split())


def test_stock_command_knows_the_stage() -> None:
    assert STAGES in help_of("llamafactory-cli", "train", "-h", LLAMAFACTORY_GRPO="1")


def test_switched_off_stock_command_is_stock() -> None:
    text = help_of("llamafactory-cli", "train", "-h", LLAMAFACTORY_GRPO="0")
    assert STAGES.replace(",grpo", "") in text
    assert "grpo_" not in text


def test_fallback_knows_the_stage_in_torchrun_children() -> None:
    fallback = (sys.executable, "-m", "llamafactory_plugin", "train", "-h")
    assert STAGES in help_of(*fallback, FORCE_TORCHRUN="1", NPROC_PER_NODE="2", LLAMAFACTORY_GRPO="0")

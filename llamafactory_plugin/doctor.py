"""`python -m llamafactory_plugin doctor`: what is installed, what is patched, what is wrong and how to put it right."""

import importlib
import importlib.util
import os
import platform
import site
import sys
from dataclasses import dataclass, field
from importlib import metadata

from llamafactory_plugin import _boot

LLAMAFACTORY_MISSING = (
    'LLaMA-Factory is not installed in this environment: run `pip install "trl-grpo-ext[llamafactory]"`, or install '
    "your own checkout of it with `pip install -e`."
)
FALLBACK = "start training with `python -m llamafactory_plugin train CONFIG.yaml`, which needs no start-up file"

PACKAGES = ("torch", "torchaudio", "transformers", "trl", "llamafactory", "peft", "accelerate", "datasets")
# Package -> (first supported version, first unsupported one, what to do).
WINDOWS = {
    "llamafactory": ((0, 9, 4), (0, 10), 'run `pip install "llamafactory>=0.9.4,<0.10"`'),
    "trl": ((0, 24), (0, 25), 'run `pip install "trl>=0.24,<0.25"`, the newest that LLaMA-Factory 0.9 accepts'),
}
_START_FILE = "llamafactory_grpo"


@dataclass
class Report:
    """Facts to print, and one sentence with its fix for each thing that is wrong."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The report as it is printed."""
        lines = [f"{name:<15} {value}" for name, value in self.facts]
        lines += [f"{'PROBLEM':<15} {problem}" for problem in self.problems]
        return "\n".join(lines if self.problems else [*lines, f"{'result':<15} all is well"])


def main() -> int:
    """Print the report; the exit status is 0 when nothing is wrong, else 1."""
    report = Report()
    report.facts.append(("python", f"{platform.python_version()} ({sys.executable})"))
    check_hook(report)
    check_versions(report)
    check_torchaudio(report)
    check_patches(report)
    report.facts.append(("GPU", describe_gpu()))
    print(report.text())
    return 1 if report.problems else 0


def start_file_name() -> str:
    """The start-up file this Python reads: `.start` since 3.15 (PEP 829), `.pth` before."""
    return _START_FILE + (".start" if sys.version_info >= (3, 15) else ".pth")


def find_start_file() -> str | None:
    """The path of the start-up file in a folder that this interpreter reads such files from, or None."""
    folders = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    paths = (os.path.join(folder, start_file_name()) for folder in folders)
    return next((path for path in paths if os.path.isfile(path)), None)


def check_hook(report: Report) -> None:
    """Whether the start-up file has put the finder into this interpreter, and why not."""
    path = find_start_file()
    found = path or f"no {start_file_name()} in a site-packages folder"
    if _boot.is_installed():
        report.facts.append(("start-up hook", f"active ({found})"))
        return
    report.facts.append(("start-up hook", f"not active ({found})"))
    report.problems.append(_why_inactive(path))


def _why_inactive(path: str | None) -> str:
    if _boot.is_switched_off():
        value = os.environ[_boot.SWITCH]
        return f"The hook is switched off by {_boot.SWITCH}={value}: unset it, or {FALLBACK}."
    if sys.flags.no_site:
        return f"Python was started with -S and reads no start-up files: start it without, or {FALLBACK}."
    if path is None:
        return (
            "The start-up file is not where Python reads such files, as after `pip install --target` or with "
            f"PYTHONPATH: install with plain `pip install`, or {FALLBACK}."
        )
    return f"{path} is there but did not take effect: reinstall with `pip install --force-reinstall`, or {FALLBACK}."


def installed_version(package: str) -> str | None:
    """The version in the package's metadata; None when it has none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def version_problems() -> list[str]:
    """One sentence with its fix for each installed package that `stage: grpo` cannot work with."""
    problems = []
    for package, (low, high, fix) in WINDOWS.items():
        version = installed_version(package)
        if version and not low <= _release(version) < high:
            window = f"{package} {_dotted(low)} or later and older than {_dotted(high)}"
            problems.append(f"`stage: grpo` needs {window}, and {version} is installed: {fix}.")
    return problems


def check_versions(report: Report) -> None:
    """List the versions that matter, and refuse what lies outside the supported windows."""
    own = installed_version("trl-grpo-ext")
    report.facts.append(("trl-grpo-ext", own or "imported from a folder, not installed"))
    for package in PACKAGES:
        version = installed_version(package)
        here = importlib.util.find_spec(package) is not None
        report.facts.append((package, version or ("installed without metadata" if here else "not installed")))
    report.problems += version_problems()
    if importlib.util.find_spec("llamafactory") is None:
        report.problems.append(LLAMAFACTORY_MISSING)


def _release(version: str) -> tuple[int, ...]:
    """`"0.9.6.dev0"` -> (0, 9, 6): a development version counts as the release it leads to."""
    numbers = []
    for part in version.split("+")[0].split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _dotted(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))


def check_torchaudio(report: Report) -> None:
    """LLaMA-Factory imports torchaudio in every run, and its last release refuses newer versions of torch."""
    if importlib.util.find_spec("llamafactory") is None:
        return
    try:
        importlib.import_module("torchaudio")
    except Exception as error:
        torch = installed_version("torch") or "not installed"
        report.problems.append(
            f"torchaudio does not load beside torch {torch} ({_one_line(error)}), and LLaMA-Factory cannot start "
            'without it: run `pip install "torch>=2.6,<2.13" torchaudio torchvision`.'
        )


def check_patches(report: Report) -> None:
    """Import the LLaMA-Factory modules that are patched, and tell what became of each patch."""
    if importlib.util.find_spec("llamafactory") is None:
        report.facts.append(("patches", "none, there is no LLaMA-Factory"))
        return
    from llamafactory_plugin import register

    _boot.insert_finder()
    for name, patch in _boot.PATCHES.items():
        try:
            importlib.import_module(name)
        except Exception as error:
            report.facts.append(("patch", f"{name}: its import fails"))
            concerned = "LLaMA Board" if ".webui." in name else "every stage of LLaMA-Factory"
            problem = f"`import {name}` fails, in {concerned}"
            report.problems.append(f"{problem}: {type(error).__name__}: {_one_line(error)}.")
            return
        result = {**register.status(), **_boot.failures}.get(patch, "not reached")
        report.facts.append(("patch", f"{name}: {result}"))
        if result != "applied":
            fix = WINDOWS["llamafactory"][2]
            report.problems.append(f"{name} could not be patched ({result}): {fix}, or report it with this output.")


def _one_line(error: Exception) -> str:
    """The error's text without line breaks, cut where it stops being a message and becomes a dump."""
    text = " ".join(str(error).split()) or "no message"
    return (text if len(text) <= 300 else text[:297] + "...").rstrip(".")


def describe_gpu() -> str:
    """The name of the first CUDA device, or why there is none."""
    try:
        import torch
    except Exception as error:
        return f"unknown, torch does not import ({_one_line(error)})"
    if not torch.cuda.is_available():
        return "none (training runs on the CPU)"
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"

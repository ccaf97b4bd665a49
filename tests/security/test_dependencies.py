"""Licences and known advisories of what this package installs.

No advisory service can be reached from the machines that run CI, so this is the stated substitute for `pip-audit`: the
lowest versions without the listed advisories, checked against what is installed. With a network, run `pip-audit`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# Distribution -> lowest version without the advisory; the newest advisory that was known in November 2026 to the
# authors is not promised to be here.
SAFE = {
    "aiohttp": ("3.12.14", "CVE-2025-53643"),
    "certifi": ("2024.7.4", "CVE-2024-39689"),
    "h11": ("0.16.0", "CVE-2025-43859"),
    "idna": ("3.7", "CVE-2024-3651"),
    "jinja2": ("3.1.6", "CVE-2025-27516"),
    "pyarrow": ("14.0.1", "CVE-2023-47248"),
    "requests": ("2.32.4", "CVE-2024-47081"),
    "starlette": ("0.49.1", "CVE-2025-62727"),
    "torch": ("2.6.0", "CVE-2025-32434"),
    "tqdm": ("4.66.3", "CVE-2024-34062"),
    "transformers": ("4.53.0", "CVE-2025-6921"),
    "urllib3": ("2.5.0", "CVE-2025-50181"),
}
# What a licence field, an expression or a classifier says, in lower case without punctuation.
ALLOWED = re.compile(
    r"apache|\bmit\b|mit-cmu|\bbsd\b|bsd-[23]-clause|isc|python software foundation|psf|unlicense|zlib|hpnd|mozilla|mpl"
)
COPYLEFT = re.compile(r"\b(?:a?gpl|gnu (?:affero )?general public)\b", re.IGNORECASE)
# Binary parts of CUDA, which torch's wheels for Linux bring: their licence allows redistribution, not changes.
PROPRIETARY = re.compile(r"nvidia-")
# Distributions that say nothing of their licence, read by hand: an empty frame around NVIDIA's packages.
READ_BY_HAND = {"cuda-toolkit"}
ENDPOINTS = ("httpx", "fastapi", "uvicorn")


def requirements(name: str) -> list[str]:
    """The distributions that one needs here, extras left out."""
    found = [Requirement(line) for line in metadata.requires(name) or ()]
    return [canonicalize_name(item.name) for item in found if not item.marker or item.marker.evaluate({"extra": ""})]


def closure(*roots: str) -> set[str]:
    """Those and everything below them that is installed."""
    found: set[str] = set()
    waiting = [canonicalize_name(root) for root in roots]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            waiting += requirements(name)
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
    return found


def licence(name: str) -> str:
    """Everything that a distribution says of its licence, but for the licence's own text."""
    said = metadata.metadata(name)
    classifiers = [line for line in said.get_all("Classifier") or () if line.startswith("License")]
    return " | ".join([said.get("License-Expression") or "", (said.get("License") or "")[:60], *classifiers])


def runtime() -> list[str]:
    return sorted(closure("trl-grpo-ext", *ENDPOINTS))


def test_the_closure_is_what_is_meant() -> None:
    assert {"torch", "trl", "transformers", "datasets", "cloudpickle", "httpx"} <= set(runtime())


@pytest.mark.parametrize("name", runtime())
def test_licence_is_permissive(name: str) -> None:
    said = licence(name)
    if name in READ_BY_HAND:
        assert not said.strip(" |")
        return
    if PROPRIETARY.match(name):
        assert "nvidia" in said.lower() or "proprietary" in said.lower(), said
        return
    assert ALLOWED.search(said.lower()), f"{name}: {said!r}; read its licence, then add it to ALLOWED"
    assert not COPYLEFT.search(said), f"{name}: {said!r}"


def installed() -> Iterator[tuple[str, str]]:
    for name in SAFE:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def test_no_known_advisory() -> None:
    found = dict(installed())
    assert {"torch", "transformers"} <= set(found)
    old = [
        f"{name} {version}: {SAFE[name][1]}, fixed in {SAFE[name][0]}"
        for name, version in found.items()
        if Version(version) < Version(SAFE[name][0])
    ]
    assert old == []

"""Libraries in memory and in a file: the same tests run on both."""

import os
from pathlib import Path

import pytest

from trl_grpo_ext.experience import ExperienceLibrary

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["memory", "file", "file without FTS5"])
def where(request, tmp_path, monkeypatch):
    """Arguments that open a library: in memory, in a file, and in a file with an SQLite that has no FTS5."""
    if request.param == "file without FTS5":
        monkeypatch.setattr("trl_grpo_ext.experience.store.has_full_text", lambda connection: False)
    return {} if request.param == "memory" else {"path": tmp_path / "experiences.db"}


@pytest.fixture
def library(where):
    with ExperienceLibrary(seed=0, **where) as opened:
        yield opened


@pytest.fixture
def subprocess_environment():
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


def rollouts(prompt, *responses):
    return [(prompt, response) for response in responses]

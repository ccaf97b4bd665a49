"""The start-up benchmark runs from a checkout and reports in the form of all benchmarks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import REPOSITORY

pytestmark = pytest.mark.line_a


def test_startup_benchmark_measures_the_hook_against_its_baseline(tmp_path: Path) -> None:
    path = tmp_path / "startup.json"
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "startup.py"), "--quick", "--json", str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    report = json.loads(path.read_text())
    assert set(report) == {"name", "environment", "results", "goals"}
    arms = {row["arm"]: row for row in report["results"]}
    assert list(arms) == ["baseline", "hook", "switched off", "baseline again"]
    (goal,) = report["goals"]
    assert goal["value"] == arms["hook"]["added_cpu_ms"]
    assert goal["met"] == (goal["value"] < 1.0) == (result.returncode == 0)
    # Four times the goal: only an import of something heavy costs that much, on however busy a machine.
    assert goal["value"] < 4.0

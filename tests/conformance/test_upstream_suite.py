"""TRL's own tests with our trainer in the place of theirs, when the path of their test file is given.

`TRL_GRPO_TESTS=path/to/tests/test_grpo_trainer.py`, from the TRL release that is installed. They load tiny models from
the hub: run them where it, or a cache of it, can be reached. `TRL_GRPO_TESTS_SELECT` is handed to `pytest -k`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FILE = os.environ.get("TRL_GRPO_TESTS", "")
PLUGIN = """
import pytest
from trl_grpo_ext import ExtendedGRPOTrainer, import_trl
import_trl()

@pytest.fixture(autouse=True)
def our_trainer(request, monkeypatch):
    monkeypatch.setattr(request.module, "GRPOTrainer", ExtendedGRPOTrainer, raising=False)
"""


@pytest.mark.skipif(not FILE, reason="TRL_GRPO_TESTS does not name TRL's tests/test_grpo_trainer.py")
@pytest.mark.slow
def test_upstream_suite(tmp_path):
    (tmp_path / "our_trainer_plugin.py").write_text(PLUGIN)
    select = os.environ.get("TRL_GRPO_TESTS_SELECT")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "our_trainer_plugin", "-p", "no:cacheprovider", FILE]
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    # From their repository, whose configuration and helpers they need.
    done = subprocess.run(
        [*command, *(["-k", select] if select else [])],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=Path(FILE).resolve().parents[1],
    )
    assert done.returncode == 0

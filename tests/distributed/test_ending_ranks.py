"""One of two ranks is killed, or gets SIGTERM alone: the run ends, does not hang, and leaves a whole checkpoint."""

import os
import subprocess

import pytest
from transformers.trainer_utils import get_last_checkpoint

from tests.ranks import CHILD, REPOSITORY


def ended(model, folder, number):
    command = ["torchrun", "--standalone", "--nproc_per_node", "2", "-m", "tests.distributed.ending_ranks"]
    command += [str(model), str(folder), number]
    # torchrun waits 30 seconds for a rank that it has asked to end.
    done = subprocess.run(command, env=os.environ | CHILD, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert not (folder / "not reached").exists()
    return done.stdout + done.stderr


def ranks_in(checkpoint):
    return sorted(path.name for path in checkpoint.glob("grpo_state_*.pt"))


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others(model, tmp_path):
    output = ended(model, tmp_path, "SIGKILL")
    assert "exitcode  : -9" in output or "Signal 9" in output, output[-3000:]
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-1")
    assert ranks_in(tmp_path / "checkpoint-1") == ["grpo_state_0.pt", "grpo_state_1.pt"]


@pytest.mark.slow
def test_sigterm_on_one_rank_saves_on_both(model, tmp_path):
    output = ended(model, tmp_path, "SIGTERM")
    assert f"training stopped after step 2 of 50, saved in {tmp_path / 'checkpoint-2'}" in output, output[-3000:]
    assert "exitcode  : 143" in output, output[-3000:]
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-2")
    assert ranks_in(tmp_path / "checkpoint-2") == ["grpo_state_0.pt", "grpo_state_1.pt"]

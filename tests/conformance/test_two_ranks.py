"""The same on two gloo ranks, started by torchrun as users do."""

import os
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CHILD = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}


def test_two_ranks(model, tmp_path):
    command = ["torchrun", "--standalone", "--nproc_per_node", "2", "-m", "tests.conformance.two_ranks"]
    done = subprocess.run(
        [*command, str(model), str(tmp_path)],
        env=os.environ | CHILD,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("two ranks agree") == 2

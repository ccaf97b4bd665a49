"""The same on two gloo ranks, started by torchrun as users do."""

import os
import subprocess

from tests.conformance.test_two_ranks import CHILD, REPOSITORY


def test_two_ranks(tmp_path):
    command = ["torchrun", "--standalone", "--nproc_per_node", "2", "-m", "tests.batching.two_ranks"]
    done = subprocess.run(
        [*command, str(tmp_path)], env=os.environ | CHILD, cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("two ranks agree") == 2

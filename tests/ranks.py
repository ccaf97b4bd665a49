"""Scripts of several gloo ranks on this machine, started by torchrun as users do."""

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

REPOSITORY = Path(__file__).resolve().parents[1]
CHILD = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}


def run_ranks(module: str, *arguments: object, ranks: int = 2, timeout: float = 300) -> str:
    """Run a module on several ranks and return what they print; every rank must end with `leave`."""
    command = ["torchrun", "--standalone", "--nproc_per_node", str(ranks), "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command, env=os.environ | CHILD, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout
    )
    # torchrun's own report of a failure is long and comes last; the rank's is before it.
    assert done.returncode == 0, done.stdout[-1000:] + "\n" + done.stderr[-6000:]
    assert done.stdout.count("a rank has ended well") == ranks, done.stdout[-1000:]
    return done.stdout


def leave() -> NoReturn:
    """End this rank, once all have come here.

    Without Python's clean-up at exit: a rank that goes through it while something still holds gloo's threads aborts
    now and then ("terminate called without an active exception"), whatever was tested before.
    """
    from torch.distributed import barrier, destroy_process_group

    barrier()
    destroy_process_group()
    gc.collect()
    print("a rank has ended well", flush=True)
    sys.stderr.flush()
    os._exit(0)

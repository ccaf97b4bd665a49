"""A process killed in the middle of writing: what stood there is there, whole, and a second run makes the delta."""

import os
import signal

import pytest
from transformers import AutoModelForCausalLM

import trl_grpo_ext.bitdelta as bitdelta
from trl_grpo_ext.bitdelta import writing

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX's")


def killed_at(moment, work):
    """Run `work` in a child that kills itself at the `moment`-th write to a file; return whether it came to that."""
    child = os.fork()
    if not child:
        left, write = [moment], writing.tensor_bytes

        def counted(tensor):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(tensor)

        writing.tensor_bytes = bitdelta.materialise.tensor_bytes = counted
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("moment", [1, 9, 25])
@pytest.mark.parametrize("stood", [False, True])
def test_a_killed_run_leaves_the_target_as_it_was(moment, stood, pair, made, tmp_path):
    out = tmp_path / "out"
    if stood:
        bitdelta.compress(*pair, out, bitdelta.BitDeltaConfig(bits=2))
    before = {file.name: file.read_bytes() for file in out.iterdir()} if stood else None
    for work in (
        lambda: bitdelta.compress(*pair, out, overwrite=True),
        lambda: bitdelta.export(made[1], out, overwrite=True),
    ):
        assert killed_at(moment, work)
        assert before == ({file.name: file.read_bytes() for file in out.iterdir()} if out.exists() else None)
    bitdelta.compress(*pair, out, overwrite=True)
    assert bitdelta.verify(out) > 10 and AutoModelForCausalLM.from_pretrained(out) is not None


def test_killed_while_folders_change_places(pair, tmp_path):
    """Between two renames, the one moment without a target: what stood there lies beside it, whole."""
    out = tmp_path / "out"
    bitdelta.compress(*pair, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    child = os.fork()
    if not child:
        rename = os.rename
        os.rename = lambda one, two: os.kill(os.getpid(), signal.SIGKILL) if two == out else rename(one, two)
        try:
            bitdelta.compress(*pair, out, overwrite=True)
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    (aside,) = tmp_path.glob(".out.*.old")
    assert not out.exists() and {file.name: file.read_bytes() for file in aside.iterdir()} == before

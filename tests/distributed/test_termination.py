"""SIGTERM: the step is finished, its checkpoint written, and the run goes on from there as if nothing had been."""

import logging
import os
import signal
import sys

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from tests.conformance.runs import extended, parameters
from tests.distributed.killed_runs import in_child
from tests.distributed.resume_runs import SAVING
from trl_grpo_ext import TerminationCallback

SETTINGS = SAVING | {"max_steps": 4, "save_strategy": "no", "num_iterations": 2}


class Signalled(TrainerCallback):
    """A scheduler's signal, twice, in the middle of a step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)


class Last(TrainerCallback):
    """Given after the one that ends the process."""

    def on_train_end(self, args, state, control, **kwargs):
        print("the last callback", state.global_step)


def test_a_run_that_is_asked_to_end_can_be_gone_on_with(model, tmp_path):
    def work():
        sys.stdout = sys.stderr = open(tmp_path / "output", "w")  # noqa: SIM115
        logging.basicConfig(stream=sys.stderr, force=True)
        trainer = extended(model, tmp_path / "run", callbacks=[Signalled(), TerminationCallback(), Last()], **SETTINGS)
        trainer.train()
        print("not reached")

    straight = extended(model, tmp_path / "straight", **SETTINGS)
    straight.train()
    assert in_child(work) == 143
    output = (tmp_path / "output").read_text()
    assert "the last callback 2" in output and "not reached" not in output
    assert f"training stopped after step 2 of 4, saved in {tmp_path / 'run' / 'checkpoint-2'}" in output
    assert get_last_checkpoint(str(tmp_path / "run")) == str(tmp_path / "run" / "checkpoint-2")
    before = signal.getsignal(signal.SIGTERM)
    resumed = extended(model, tmp_path / "run", callbacks=[TerminationCallback()], **SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    assert signal.getsignal(signal.SIGTERM) is before
    for name, value in parameters(resumed).items():
        assert torch.equal(value, parameters(straight)[name]), name

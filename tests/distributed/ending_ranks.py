"""Run by torchrun: rank 1 is killed, or asked to end, in the middle of the second step."""

import os
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback

from tests.conformance.runs import extended
from tests.distributed.resume_runs import SAVING
from trl_grpo_ext import TerminationCallback

MODEL, FOLDER, NUMBER = Path(sys.argv[1]), Path(sys.argv[2]), getattr(signal, sys.argv[3])


class Signalled(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), NUMBER)


trainer = extended(
    MODEL, FOLDER, callbacks=[Signalled(), TerminationCallback()], **SAVING | {"max_steps": 50, "save_steps": 1}
)
assert trainer.accelerator.num_processes == 2
trainer.train()
(FOLDER / "not reached").touch()

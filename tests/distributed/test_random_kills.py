"""A run with a store that is killed at random moments, again and again, ends where the undisturbed run ends.

`KILLS` says how often (100 by default).
"""

import os
import signal
from random import Random

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from tests.conformance.runs import extended, parameters
from tests.distributed.killed_runs import in_child
from tests.distributed.resume_runs import SAVING, logs
from tests.experience.callback_runs import contents, lessons_library
from trl_grpo_ext import ExperienceCallback, ExperienceLibrary

KILLS = int(os.environ.get("KILLS", "100"))
STEPS = 10 + 2 * KILLS
SETTINGS = SAVING | {"max_steps": STEPS, "save_steps": 2, "save_total_limit": 3, "num_iterations": 2}


def make(model, folder, **settings):
    folder.mkdir(exist_ok=True)
    path = folder / "experiences.db"
    library = path if path.exists() else lessons_library(path)
    callback = ExperienceCallback(library, position="prefix", template=None, dropout=0.4)
    return extended(model, folder, callbacks=[callback], **SETTINGS | settings), callback


class StopAt(TrainerCallback):
    """The first checkpoint: before it there is nothing to go on from."""

    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop = True


def version_of(path):
    """Of a file that is sound; every committed version stays in it, those that were rolled back too."""
    with ExperienceLibrary(path, create=False) as library:
        assert library.check_integrity() == []
        return library.version


@pytest.mark.slow
def test_killed_again_and_again(model, tmp_path):
    run, random, versions, killed = tmp_path / "killed", Random(0), [0], 0
    first, stored = make(model, run)
    first.add_callback(StopAt())
    first.train()
    # A child must not inherit an open database.
    stored.library.close()

    def work():
        make(model, run)[0].train(resume_from_checkpoint=True)

    # Seconds within which a child is killed, by how far the run is: on any machine it ends after the last kill.
    within = 2.0
    while killed < KILLS:
        status = in_child(work, kill_after=random.uniform(0.1, within))
        assert status == -signal.SIGKILL, "a run that was resumed has failed, or was over before the last kill"
        versions.append(version_of(run / "experiences.db"))
        assert versions == sorted(versions), "a committed version is gone"
        killed += 1
        checkpoint = int(get_last_checkpoint(str(run)).rsplit("-", 1)[1])
        within *= 0.7 if checkpoint > 0.9 * STEPS * killed / KILLS else 1.2
        print(f"kill {killed}: checkpoint {checkpoint}, version {versions[-1]}", flush=True)
    resumed, library = make(model, run)
    resumed.train(resume_from_checkpoint=True)
    straight, undisturbed = make(model, tmp_path / "straight")
    straight.train()
    assert resumed.state.global_step == STEPS
    for name, value in parameters(resumed).items():
        assert torch.equal(value, parameters(straight)[name]), name
    assert logs(resumed, 0) == logs(straight, 0)
    assert contents(library.library) == contents(undisturbed.library)
    assert library.library.counters() == undisturbed.library.counters()

"""Killed by a real SIGKILL while a checkpoint is written, or out of disk: what is left is never taken for whole."""

import inspect
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from tests.conformance.runs import extended, parameters
from tests.distributed.killed_runs import in_child, kill_me
from tests.distributed.resume_runs import SAVING
from tests.experience.callback_runs import contents, lessons_library
from trl_grpo_ext import CheckpointCallback, ExperienceCallback, checkpoint_files, checkpoints, resume_state
from trl_grpo_ext.checkpoints import CheckpointError

STEPS = 3
SETTINGS = SAVING | {"max_steps": STEPS, "save_steps": 1, "num_iterations": 2, "gradient_accumulation_steps": 1}


def make(model, folder, **settings):
    folder.mkdir(exist_ok=True)
    path = folder / "experiences.db"
    library = path if path.exists() else lessons_library(path)
    callback = ExperienceCallback(library, position="prefix", template=None, dropout=0.4)
    return extended(model, folder, callbacks=[callback], **SETTINGS | settings)


def library_of(trainer):
    callbacks = trainer.callback_handler.callbacks
    return next(one for one in callbacks if isinstance(one, ExperienceCallback)).library


@pytest.fixture(scope="module")
def straight(model, tmp_path_factory):
    trainer = make(model, tmp_path_factory.mktemp("straight") / "run")
    trainer.train()
    return trainer


def half_written(trainer, folder):
    resume_state.state_file(folder, 0).write_bytes(b"half of it")
    kill_me()


# What is replaced by a kill: the weights are there, and each time some more.
MOMENTS = {
    "optimizer": (Trainer, "_save_optimizer_and_scheduler", kill_me),
    "state": (checkpoints, "save_state", half_written),
    "library": (ExperienceCallback, "save_into", kill_me),
    "flush": (checkpoint_files, "_to_disk", kill_me),
}


@pytest.mark.parametrize(
    "moment",
    [pytest.param(name, marks=pytest.mark.slow if name in ("optimizer", "flush") else ()) for name in MOMENTS],
)
def test_a_kill_while_the_second_checkpoint_is_written(moment, straight, model, tmp_path):
    owner, name, replacement = MOMENTS[moment]

    def work():
        trainer = make(model, tmp_path / "run")

        class Armed(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 2:
                    setattr(owner, name, replacement)

        trainer.add_callback(Armed())
        trainer.train()

    assert in_child(work) == -signal.SIGKILL
    run = tmp_path / "run"
    assert list((run / "_saving").glob("checkpoint-2/*.safetensors")), "the kill came before the weights"
    assert get_last_checkpoint(str(run)) == str(run / "checkpoint-1")
    trainer = make(model, run)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == STEPS
    for key, value in parameters(trainer).items():
        assert torch.equal(value, parameters(straight)[key]), key
    assert contents(library_of(trainer)) == contents(library_of(straight))
    assert not (run / "_saving").exists()


def with_push(model, folder, pushed):
    """The hub is not asked: what would be uploaded, and whether it was whole then."""
    trainer = make(model, folder)
    trainer.args.push_to_hub = True
    own = [resume_state.state_file(Path("."), 0).name, "experiences.db", "trainer_state.json", "model.safetensors"]

    def push(checkpoint_folder):
        whole = all((Path(checkpoint_folder) / name).is_file() for name in own)
        pushed.append((Path(checkpoint_folder).name, whole and not (folder / "_saving").exists()))

    assert list(inspect.signature(trainer._push_from_checkpoint).parameters) == ["checkpoint_folder"]
    trainer._push_from_checkpoint = push
    return trainer


def test_a_checkpoint_is_pushed_when_it_is_whole(model, tmp_path):
    pushed = []
    with_push(model, tmp_path / "run", pushed).train()
    assert pushed == [(f"checkpoint-{step}", True) for step in range(1, STEPS + 1)]


def test_a_kill_while_a_checkpoint_that_is_to_be_pushed_is_written(model, tmp_path):
    def work():
        checkpoints.save_state = half_written
        with_push(model, tmp_path / "run", []).train()

    assert in_child(work) == -signal.SIGKILL
    assert (tmp_path / "run" / "_saving" / "checkpoint-1" / "model.safetensors").is_file()
    assert get_last_checkpoint(str(tmp_path / "run")) is None


def test_saved_again_at_the_same_step(tmp_path):
    """A kill between the two renames leaves the earlier checkpoints; without one the newer takes its place."""
    for name, text in (("checkpoint-1", "old"), ("checkpoint-2", "old"), ("_saving/checkpoint-2", "new")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(text)

    def work():
        replace, calls = os.replace, []
        os.replace = lambda *paths: (calls.append(paths), kill_me() if len(calls) == 2 else replace(*paths))
        checkpoint_files.publish(tmp_path, "checkpoint-2")

    assert in_child(work) == -signal.SIGKILL
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-1")
    assert (tmp_path / "_saving" / "older-checkpoint-2" / "file").read_text() == "old"
    checkpoint_files.publish(tmp_path, "checkpoint-2")
    assert (tmp_path / "checkpoint-2" / "file").read_text() == "new"
    assert not (tmp_path / "_saving").exists()


def test_a_full_disk_ends_the_run_with_the_way_out(model, tmp_path):
    """No file may grow beyond a few bytes from step 2 on: what a full disk is to a writer."""

    class Full(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    def work():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        trainer = extended(model, tmp_path, callbacks=[Full()], **SETTINGS)
        try:
            trainer.train()
        except CheckpointError as error:
            (tmp_path / "message").write_text(str(error))
            raise SystemExit(7) from None

    assert in_child(work) == 7
    message = (tmp_path / "message").read_text()
    assert message.startswith(f"checkpoint-2 could not be written to {tmp_path}: ")
    assert message.endswith(f"go on from {tmp_path / 'checkpoint-1'} with resume_from_checkpoint.")
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-1")
    assert not (tmp_path / "_saving").exists()


def test_the_best_checkpoint_and_the_number_of_them(model, tmp_path):
    """What transformers looks for in the output folder while it saves is not in `_saving`."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 2, "per_device_eval_batch_size": 4}
    trainer = extended(model, tmp_path, **SETTINGS | best | every)
    trainer.train()
    chosen = tmp_path / f"checkpoint-{trainer.state.best_global_step}"
    assert trainer.state.best_model_checkpoint == str(chosen)
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert len(left) == 2 and left >= {chosen.name, f"checkpoint-{STEPS}"}
    state = resume_state.state_file(chosen, 0)
    assert state.is_file()
    assert (
        f'"best_model_checkpoint": "{chosen}"' in (tmp_path / f"checkpoint-{STEPS}" / "trainer_state.json").read_text()
    )


def test_not_every_trainer_and_not_every_setting(model, tmp_path):
    class Other:
        args = None

    with pytest.raises(TypeError, match="needs a GRPOTrainer, not Other"):
        CheckpointCallback().attach(Other())
    with pytest.raises(ValueError, match="saves in the middle of an optimizer step"):
        extended(model, tmp_path, enable_jit_checkpoint=True)
    trainer = extended(model, tmp_path, sync_ref_model=True, beta=0.1)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="sync_ref_model=True with FSDP"):
        CheckpointCallback().attach(trainer)

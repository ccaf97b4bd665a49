"""`CheckpointCallback`: checkpoints that are whole or not there, and a resumed run that equals the straight one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from trl_grpo_ext._attach import calling_trainer, resumed_checkpoint
from trl_grpo_ext._compat import read_onto_indexed_cpu, rotate_checkpoints
from trl_grpo_ext.checkpoint_files import publish, remove_unfinished, staging_folder
from trl_grpo_ext.resume_state import load_state, save_state

_SAVE = "_save_checkpoint"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; those before it are as they were."""


class CheckpointCallback(TrainerCallback):
    """Writes whole checkpoints, with what TRL leaves out of them: `callbacks=[CheckpointCallback()]`.

    For TRL's GRPOTrainer and everything derived from it; `ExtendedGRPOTrainer` has one by itself.

    A checkpoint is written to `_saving` in the output folder and then renamed (see `checkpoint_files`), so that neither
    a kill nor a full disk leaves one that looks whole. Callbacks with a method `save_into(folder)` write their part
    before that. With `push_to_hub` transformers uploads it after that.

    Besides what transformers keeps, a checkpoint has the state of `resume_state`. Training resumed at step k then
    takes the same steps as training that went on: parameters, order of the prompts, in later epochs too, completions,
    metrics and losses are equal bit for bit, where the device computes the same twice. It needs the same number of
    ranks, batch sizes, and `ignore_data_skip=False`. An evaluation that only one of the two runs makes right after
    the checkpoint (`eval_strategy="epoch"` with `save_strategy="steps"`) draws random numbers and so ends the equality.

    Raises:
        TypeError: when attached, something else than a GRPO trainer.
        ValueError: when attached, `enable_jit_checkpoint`, which saves in the middle of an optimizer step, or
            `sync_ref_model` with FSDP.
        CheckpointError: a checkpoint can't be written.
    """

    def __init__(self) -> None:
        self.trainer: Any = None

    def attach(self, trainer: Any) -> None:
        """Wrap the saving of a trainer; given as `callbacks=[...]`, the callback does so by itself."""
        if self.trainer is trainer:
            return
        if not hasattr(trainer, "_calculate_rewards"):
            raise TypeError(f"CheckpointCallback needs a GRPOTrainer, not {type(trainer).__name__}.")
        if getattr(trainer.args, "enable_jit_checkpoint", False):
            raise ValueError(
                "enable_jit_checkpoint=True saves in the middle of an optimizer step, from where a GRPO run can't go "
                "on exactly: set it to False, and pass callbacks=[TerminationCallback()], which saves at its end."
            )
        if trainer.args.sync_ref_model and getattr(trainer, "is_fsdp_enabled", False):
            raise ValueError(
                "sync_ref_model=True with FSDP: checkpoints can't keep the reference model, which each rank has a part "
                "of; set it to False, or shard by DeepSpeed ZeRO-3."
            )
        self.trainer = trainer
        read_onto_indexed_cpu()
        setattr(trainer, _SAVE, functools.partial(self._save, getattr(trainer, _SAVE)))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach; after a resume, go on where the checkpoint was.

        Raises:
            RuntimeError: called by something else than a `transformers.Trainer`.
        """
        trainer = calling_trainer()
        if trainer is None:
            raise RuntimeError("CheckpointCallback found no trainer among its callers; call attach(trainer) instead.")
        self.attach(trainer)
        checkpoint = resumed_checkpoint(trainer)
        if checkpoint is not None:
            _pass_epochs(kwargs.get("train_dataloader"), int(state.epoch or 0))
            load_state(trainer, checkpoint)

    def _save(self, save: Callable[..., None], model: Any, trial: Any = None) -> None:
        trainer = self.trainer
        run, name = Path(trainer._get_output_dir(trial=trial)), f"checkpoint-{trainer.state.global_step}"
        try:
            self._save_whole(lambda: save(model, trial), run, name)
        except Exception as error:
            if trainer.accelerator.is_local_main_process:
                remove_unfinished(run)
            raise CheckpointError(_failure(run, name, error)) from error
        if trainer.args.push_to_hub:
            trainer._push_from_checkpoint(str(run / name))
        if trainer.args.should_save:
            rotate_checkpoints(trainer, str(run))

    def _save_whole(self, save: Callable[[], None], run: Path, name: str) -> None:
        accelerator = self.trainer.accelerator
        if accelerator.is_local_main_process:
            remove_unfinished(run)
        accelerator.wait_for_everyone()
        with _saving_into(self.trainer, run):
            save()
            self._save_parts(staging_folder(run) / name)
        _keep_best(self.trainer, run, name)
        accelerator.wait_for_everyone()
        if accelerator.is_local_main_process:
            publish(run, name)
        accelerator.wait_for_everyone()

    def _save_parts(self, folder: Path) -> None:
        save_state(self.trainer, folder)
        for callback in self.trainer.callback_handler.callbacks:
            save_into = getattr(callback, "save_into", None)
            if save_into is not None:
                save_into(folder)


def _saving_into(trainer: Any, run: Path) -> AbstractContextManager[None]:
    """Transformers and TRL put `checkpoint-N` into what the first returns, and upload it before it is whole."""
    folder = str(staging_folder(run))
    return _replaced(trainer, _get_output_dir=lambda trial=None: folder, _push_from_checkpoint=lambda folder: None)


@contextmanager
def _replaced(trainer: Any, **methods: Callable[..., Any]) -> Iterator[None]:
    before = {name: method for name, method in vars(trainer).items() if name in methods}
    vars(trainer).update(methods)
    try:
        yield
    finally:
        for name in methods:
            delattr(trainer, name)
        vars(trainer).update(before)


def _keep_best(trainer: Any, run: Path, name: str) -> None:
    """The best checkpoint, if it is this one or one that transformers did not find beside it, by its lasting name."""
    step = trainer.state.best_global_step
    if not step or not trainer.args.should_save:
        return
    best = run / f"checkpoint-{step}"
    if best.exists() or best.name == name:
        trainer.state.best_model_checkpoint = str(best)
        trainer.state.save_to_json(str(staging_folder(run) / name / "trainer_state.json"))


def _failure(run: Path, name: str, error: Exception) -> str:
    last = get_last_checkpoint(str(run)) if run.is_dir() else None
    way_out = f"go on from {last} with resume_from_checkpoint" if last else "start again; there is no earlier one"
    return (
        f"{name} could not be written to {run}: {type(error).__name__}: {error}. Make room or mend the folder, then "
        f"{way_out}."
    )


def _pass_epochs(loader: Any, epochs: int) -> None:
    """Bring TRL's sampler to the order of a later epoch: it draws one with its own generator for each."""
    node: Any = getattr(loader, "batch_sampler", None)
    while hasattr(node, "batch_sampler"):
        node = node.batch_sampler
    sampler: Any = getattr(node, "sampler", None)
    if not getattr(sampler, "shuffle", False) or not hasattr(sampler, "num_samples"):
        return
    for _ in range(epochs):
        torch.randperm(sampler.num_samples, generator=sampler.generator)

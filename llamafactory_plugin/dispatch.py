"""What stands in the place of LLaMA-Factory's `_training_function`: refuse, parse, add callbacks, run."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import ModuleType
from typing import Any

from llamafactory_plugin import register
from llamafactory_plugin.arguments import stage_choices
from llamafactory_plugin.bitdelta import other_stage_callbacks
from llamafactory_plugin.board import show_warnings
from llamafactory_plugin.checks import check_choice
from llamafactory_plugin.errors import UsageError, show_usage_errors_in_one_line
from llamafactory_plugin.raw_arguments import (
    config_folder,
    explicit_arguments,
    known_names,
    refuse_own_names,
    refuse_unknown_names,
)
from llamafactory_plugin.run_arguments import RunArguments

OLDEST_LLAMAFACTORY = (0, 9, 4)
NO_RAY = "USE_RAY: stage grpo does not run in LLaMA-Factory's Ray mode; unset it and use FORCE_TORCHRUN=1 instead."


def training_function(tuner: ModuleType, original: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> None:
    """Run stage grpo; hand every other stage to LLaMA-Factory's `original` unless it was given grpo keys.

    The `bitdelta*` keys only add a callback there.

    Raises:
        UsageError: for a run that cannot work as written, before any model is loaded.
    """
    show_usage_errors_in_one_line()
    explicit = explicit_arguments(config["args"], known_names(_argument_classes()))
    if not is_grpo(explicit):
        own = other_stage_callbacks(config["args"], explicit, explicit.get("stage", "sft"))
        return original({**config, "callbacks": [*config["callbacks"], *own]} if own else config)
    run = parse_run(tuner, config["args"])
    if run.finetuning_args.grpo_training_free:
        from llamafactory_plugin.training_free import run_training_free

        return run_training_free(run)
    from llamafactory_plugin.workflow import run_grpo

    run_grpo(run, callbacks=[*config["callbacks"], *llamafactory_callbacks(tuner, run)])
    _leave_process_group()


def ray_training_function(original: Callable[..., None], ray_args: Any, config: dict[str, Any]) -> None:
    """Refuse stage grpo before a Ray cluster is started; every other stage reaches LLaMA-Factory's `original`.

    Raises:
        UsageError: for stage grpo.
    """
    show_usage_errors_in_one_line()
    if is_grpo(explicit_arguments(config["args"], known_names(_argument_classes()))):
        raise UsageError(NO_RAY)
    original(ray_args, config)


def is_grpo(explicit: dict[str, Any]) -> bool:
    """Whether the keys ask for stage grpo.

    Raises:
        UsageError: for an unknown stage, for grpo keys in another stage, for an environment without stage grpo.
    """
    stage = explicit.get("stage", "sft")
    if stage == "grpo":
        _check_environment()
        return True
    check_choice("stage", stage, stage_choices(_finetuning_class()))
    refuse_own_names(explicit, stage)
    return False


def parse_run(tuner: ModuleType, args: Any) -> RunArguments:
    """LLaMA-Factory's own parsing of a YAML mapping or of flags, and what the user wrote.

    Raises:
        UsageError: for a key that no argument class takes, and for values out of range.
    """
    known = known_names(_argument_classes())
    explicit = explicit_arguments(args, known)
    refuse_unknown_names(explicit, known)
    return RunArguments.of(tuner.get_train_args(args), explicit=explicit, folder=config_folder(args))


def llamafactory_callbacks(tuner: ModuleType, run: Any) -> list[Any]:
    """The callbacks that LLaMA-Factory's own dispatch adds, in its order; a contract test compares them with it."""
    finetuning, training = run.finetuning_args, run.training_args
    callbacks = [tuner.LogCallback()]
    show_warnings(callbacks[0])
    if finetuning.pissa_convert:
        callbacks.append(tuner.PissaConvertCallback())
    if finetuning.use_swanlab:
        callbacks.append(tuner.get_swanlab_callback(finetuning))
    if finetuning.early_stopping_steps is not None:
        callbacks.append(tuner.EarlyStoppingCallback(early_stopping_patience=finetuning.early_stopping_steps))
    if getattr(training, "enable_torch_profiler", False):
        callbacks.append(tuner.TorchProfilerCallback(training))
    if getattr(training, "profile_modules", None):
        callbacks.append(tuner.ModuleProfilerCallback(training.profile_modules))
    callbacks.append(tuner.ReporterCallback(run.model_args, run.data_args, finetuning, run.generating_args))
    return callbacks


def _argument_classes() -> list[type]:
    from llamafactory.hparams import parser

    return parser._TRAIN_ARGS


def _finetuning_class() -> type:
    from llamafactory.hparams import FinetuningArguments

    return FinetuningArguments


def _check_environment() -> None:
    from llamafactory.extras.env import VERSION
    from llamafactory.extras.misc import use_ray

    if tuple(int(part) for part in VERSION.split(".")[:3] if part.isdigit()) < OLDEST_LLAMAFACTORY:
        raise UsageError(
            f"stage grpo needs LLaMA-Factory 0.9.4 or later: {VERSION} pins trl<=0.9.6, which has no GRPOTrainer; "
            "upgrade with `pip install -U 'llamafactory>=0.9.4'`."
        )
    if register.failures():
        reasons = "; ".join(f"{name}: {reason}" for name, reason in register.failures().items())
        raise UsageError(f"LLaMA-Factory {VERSION} does not have the shape this plugin patches ({reasons}).")
    if use_ray():
        raise UsageError(NO_RAY)


def _leave_process_group() -> None:
    """Destroy the process group, and collect what still holds it.

    The trainer is freed by the garbage collector only (it is part of reference cycles), and its DDP reducer keeps
    gloo's threads alive: a rank that ends before they are joined now and then dies of SIGABRT ("terminate called
    without an active exception"), and torchrun reports a finished run as failed.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()

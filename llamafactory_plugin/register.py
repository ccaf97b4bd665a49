"""The only file that assigns into LLaMA-Factory's modules.

Four lasting patches, each applied right after the module's own code ran (`_boot`):

* `hparams.parser`: the argument class, so that `-h`, flags and YAML know `stage: grpo` and the `grpo_*` keys;
* `train.tuner`: `_training_function`, so that the stage is dispatched, and `_ray_training_function`, so that it is
  refused there;
* `extras.constants`: `TRAINING_STAGES`, so that LLaMA Board lists it;
* `webui.control`: `gen_loss_plot`, so that LLaMA Board draws the reward too, `change_stage`, so that it keeps the data
  sets of a saved configuration, and `get_trainer_info` with `webui.css`, so that it wraps the log of this stage. No
  training imports these modules.

A patch never raises into LLaMA-Factory: its failure is remembered and told when somebody asks for `stage: grpo`.
`swapped` is for the patches that hold only while `run_grpo` loads its data.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_APPLIED = "applied"
_status: dict[str, str] = {}


def status() -> dict[str, str]:
    """Patch name -> `"applied"`, or why it failed. A patch is missing while its module is not imported."""
    return dict(_status)


def failures() -> dict[str, str]:
    """The patches that failed, with their reasons."""
    return {name: reason for name, reason in _status.items() if reason != _APPLIED}


def apply(patch_name: str, module: ModuleType) -> None:
    """Run one patch on `module`; a failure is remembered in `status()` and never raised."""
    try:
        _PATCHES[patch_name](module)
        _status[patch_name] = _APPLIED
    except Exception as error:
        _status[patch_name] = f"{type(error).__name__}: {error}"


def patch_parser(parser: ModuleType) -> None:
    """Put the extended argument class where the original stands, in every list of the parser and for pickling."""
    from llamafactory_plugin.arguments import GRPOArguments, extend

    base = parser.FinetuningArguments
    if issubclass(base, GRPOArguments):
        return  # a reloaded parser imports the class that an earlier patch put there
    lists = [value for value in vars(parser).values() if isinstance(value, list) and base in value]
    if not lists:
        raise LookupError("llamafactory.hparams.parser has no list of argument classes with FinetuningArguments")
    extended = extend(base)
    for classes in lists:
        classes[classes.index(base)] = extended
    # Instances pickle by reference to this module path; every later `from ..hparams import` must meet one class.
    for module in (parser, sys.modules[base.__module__], sys.modules[parser.__name__.rpartition(".")[0]]):
        vars(module)["FinetuningArguments"] = extended


def patch_tuner(tuner: ModuleType) -> None:
    """Wrap the stage dispatch; every other stage reaches LLaMA-Factory's own function."""
    original = tuner._training_function

    @functools.wraps(original)
    def _training_function(config: dict[str, Any]) -> None:
        from llamafactory_plugin.dispatch import training_function

        return training_function(tuner, original, config)

    vars(tuner)["_training_function"] = _training_function
    _patch_ray(tuner)


def _patch_ray(tuner: ModuleType) -> None:
    """Let the Ray mode refuse in the process that the user started, before there is a cluster."""
    original = getattr(tuner, "_ray_training_function", None)
    if original is None:
        return

    @functools.wraps(original)
    def _ray_training_function(ray_args: Any, config: dict[str, Any]) -> None:
        from llamafactory_plugin.dispatch import ray_training_function

        return ray_training_function(original, ray_args, config)

    vars(tuner)["_ray_training_function"] = _ray_training_function


def patch_constants(constants: ModuleType) -> None:
    """Add the stage to the choices of LLaMA Board."""
    constants.TRAINING_STAGES["GRPO"] = "grpo"


def patch_control(control: ModuleType) -> None:
    """Let LLaMA Board draw the reward, keep the data sets that were chosen, and show the whole log."""
    from llamafactory.webui import css

    from llamafactory_plugin import board

    patched = {
        "gen_loss_plot": board.with_reward(control.gen_loss_plot),
        "change_stage": board.keeping_data_sets(control.change_stage),
        "get_trainer_info": board.wrapping_the_log(control.get_trainer_info),
    }
    vars(control).update(patched)
    vars(css)["CSS"] = f"{css.CSS}\n{board.CSS}\n"


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "patch_parser": patch_parser,
    "patch_tuner": patch_tuner,
    "patch_constants": patch_constants,
    "patch_control": patch_control,
}


@contextmanager
def swapped(module: ModuleType, **replacements: Any) -> Iterator[None]:
    """Replace functions of a LLaMA-Factory module inside a `with` block, and put the originals back."""
    originals = {name: getattr(module, name) for name in replacements}
    vars(module).update(replacements)
    try:
        yield
    finally:
        vars(module).update(originals)

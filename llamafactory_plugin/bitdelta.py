"""`bitdelta*`: the callback that these keys add, in stage grpo and in every other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamafactory_plugin.bitdelta_arguments import BitDeltaArguments, parse_bitdelta
from llamafactory_plugin.errors import UsageError

# Their checkpoints hold a value head beside the model, or are written by a trainer of their own.
WITHOUT_DELTA = ("rm", "ppo")


def bitdelta_callbacks(arguments: BitDeltaArguments) -> list[Any]:
    """The callback that the keys ask for; none without them."""
    if not arguments.bitdelta:
        return []
    from trl_grpo_ext.bitdelta import BitDeltaCallback, BitDeltaConfig

    size, threshold = arguments.bitdelta_group_size, arguments.bitdelta_safety_threshold
    config = BitDeltaConfig(group_size=size, safety_threshold=threshold)
    return [BitDeltaCallback(config, on="both" if arguments.bitdelta_every_checkpoint else "train_end")]


def other_stage_callbacks(args: Mapping[str, Any] | list[str], explicit: Mapping[str, Any], stage: str) -> list[Any]:
    """The callbacks of a stage that LLaMA-Factory itself runs.

    Raises:
        UsageError: for a value that is none, and for a stage whose checkpoints are not the model alone.
    """
    if not any(name.startswith("bitdelta") for name in explicit):
        return []
    arguments = parse_bitdelta(args, explicit)
    if arguments.bitdelta and stage in WITHOUT_DELTA:
        raise UsageError(
            f"bitdelta: stage {stage} trains a value head beside the model, and a delta holds the model alone; remove it."
        )
    return bitdelta_callbacks(arguments)


def check_bitdelta(run: Any) -> None:
    """Refuse a run of stage grpo that ends without a delta although one is asked for.

    Raises:
        UsageError: there is no training.
    """
    if run.finetuning_args.bitdelta and not run.training_args.do_train:
        raise UsageError("bitdelta: nothing is trained, so there is no delta; set do_train: true, or remove it.")


def bitdelta_line(arguments: BitDeltaArguments) -> str | None:
    """What a run does about deltas, for the log; None without any."""
    if not arguments.bitdelta:
        return None
    size, threshold = arguments.bitdelta_group_size, arguments.bitdelta_safety_threshold
    parts = ["at every checkpoint and at the end" if arguments.bitdelta_every_checkpoint else "at the end"]
    parts += [f"groups of {size}" if size is not None else "a scale per row", f"safety threshold {threshold}"]
    return f"delta of the start model: {', '.join(parts)}"

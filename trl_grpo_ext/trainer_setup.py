"""What `ExtendedGRPOTrainer` decides before, and outside of, TRL's own code."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from trl_grpo_ext.config import ExtendedGRPOConfig
from trl_grpo_ext.config_checks import load_function
from trl_grpo_ext.losses import LossConfig, LossInputs, LossOutputs

LossFunction = Callable[[LossInputs], LossOutputs]


def default_config(model: Any) -> ExtendedGRPOConfig:
    """Return the config of a trainer that is given none, as TRL makes it."""
    name = model if isinstance(model, str) else model.config._name_or_path
    return ExtendedGRPOConfig(f"{name.split('/')[-1]}-GRPO")


def chosen_loss(args: Any, loss_fn: LossFunction | None) -> LossFunction | None:
    """Return the user's loss function, or None.

    Raises:
        ValueError: a function beside options of the loss that it would replace, or that leave out what it may need.
    """
    if loss_fn is not None and args.uses_extended_loss:
        raise ValueError("loss_fn replaces the loss: unset loss_fn and the other options of the loss in the config.")
    for name in ("skip_entropy", "skip_zero_advantages") if loss_fn is not None else ():
        if getattr(args, name):
            raise ValueError(
                f"{name}=True does not work with a loss_fn, which may need what it leaves out: unset one."
            )
    return load_function("loss_fn", args.loss_fn) if args.loss_fn else loss_fn


def check_dataset(args: Any, dataset: Any) -> None:
    """Refuse, before a model is loaded, what the options can't do with this dataset.

    Raises:
        ValueError: a curriculum column that is not there; dynamic sampling from a stream; images where none can be.
    """
    columns, column = getattr(dataset, "column_names", None) or (), args.curriculum_column
    if column is not None and column not in columns:
        raise ValueError(
            f"curriculum_column={column!r} is not a column of the training set; it has {sorted(columns)}."
        )
    for name in ("keep_groups", "trim_padding", "shared_prompt", "skip_zero_advantages"):
        if getattr(args, name) and has_images(dataset):
            raise ValueError(f"{name}=True works without images only, and the training set has them: unset it.")
    if not args.dynamic_sampling_rounds:
        return
    if not hasattr(dataset, "__getitem__") or has_images(dataset):
        raise ValueError(
            f"dynamic_sampling_rounds={args.dynamic_sampling_rounds} draws further rows by their number and works "
            "without images only: use a map-style text dataset, or 0."
        )


def has_images(dataset: Any) -> bool:
    """Whether the rows of a dataset have images."""
    return bool({"image", "images"} & set(getattr(dataset, "column_names", None) or ()))


def check_contexts(args: Any, dataset: Any, callbacks: Any, options: Mapping[str, Any]) -> None:
    """Refuse, before a model is loaded, a loss context or an off-policy correction that could do nothing right.

    Args:
        args: an ExtendedGRPOConfig.
        dataset: the training set.
        callbacks: the trainer's, or None.
        options: the trainer's keyword arguments.

    Raises:
        ValueError: prompts that TRL does not tokenize from the row alone; a correction that no completion needs.
    """
    rescuers = [item for item in callbacks or () if hasattr(item, "off_policy")]
    plain = args.loss_context == "plain"
    for what in ["loss_context='plain'"] * plain + [type(item).__name__ for item in rescuers]:
        if has_images(dataset):
            raise ValueError(f"{what} works without images only, and the training set has them: leave it out.")
        for name in ("environment_factory", "rollout_func"):
            if options.get(name) is not None:
                raise ValueError(f"{what} needs prompts that are the dataset's, and {name} makes others: use one.")
    if args.off_policy_correction != "clip" and not (plain or any(item.off_policy for item in rescuers)):
        raise ValueError(
            f"off_policy_correction={args.off_policy_correction!r} does nothing here: set loss_context='plain', or "
            'give the trainer callbacks=[RescueCallback(..., mode="off_policy")].'
        )


@contextmanager
def loading_reference(args: Any, loads_reference: bool) -> Iterator[None]:
    """Let TRL load a reference model where one is needed at beta 0; it does so only for another beta."""
    beta = args.beta
    if loads_reference and args.needs_reference:
        args.beta = beta or 1.0
    try:
        yield
    finally:
        args.beta = beta


def with_temperature(config: Any, temperature: float) -> Any:
    """Return a copy of a generation config that samples at this temperature, or, at 0, takes the likeliest token."""
    changed = copy.deepcopy(config)
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "min_p": None}
    changed.update(**({"temperature": temperature, "do_sample": True} if temperature > 0 else greedy))
    return changed


def like_trl(trainer: Any) -> LossConfig:
    """Return the options under which our metrics describe TRL's own loss."""
    return LossConfig(importance_sampling_level=trainer.importance_sampling_level, delta=trainer.args.delta)

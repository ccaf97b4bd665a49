"""From a `GRPOConfig` to the settings of the two trainers; what a trainer can't honour is refused."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from trl_grpo_ext.gym.settings import DATA, OTHER_NAMES, WITHOUT_GRADIENT, GRPOConfig, label, with_gradient
from trl_grpo_ext.training_free import TrainingFreeConfig

if TYPE_CHECKING:
    from trl_grpo_ext.config import ExtendedGRPOConfig

# Lowest value, and whether it is allowed; TRL itself takes any number.
_LOWEST = {"beta": (0.0, True), "epsilon": (0.0, False), "temperature": (0.0, False), "learning_rate": (0.0, True)}
_ROWS = ("generation_batch_size", "steps_per_generation")


def gradient_config(config: GRPOConfig) -> ExtendedGRPOConfig:
    """Return the settings of `GRPOTrainer`.

    Where they are not given: as many rows per device as TRL has, or one group where those are no whole groups, and
    32-bit training where the hardware has no bf16, which TRL asks for everywhere.

    Raises:
        ValueError: a setting of `TrainingFreeGRPO`, or a value that can't work.
    """
    from trl_grpo_ext.config import ExtendedGRPOConfig

    given = {name: value for name, value in vars(config).items() if name not in DATA}
    names = with_gradient()
    foreign = next((name for name in given if name not in names), None)
    if foreign is not None:
        raise ValueError(
            f"{foreign} is a setting of TrainingFreeGRPO, and GRPOTrainer has none like it: leave it out."
        )
    for name, bound in _LOWEST.items():
        _check_lowest(name, given.get(name), *bound)
    if given.get("use_vllm") and find_spec("vllm") is None:
        raise ValueError(
            "use_vllm=True needs vLLM, which is not installed: leave it out, or install trl-grpo-ext[vllm]."
        )
    try:
        return ExtendedGRPOConfig(**_rows(given, names) | _precision(given) | given)
    except ValueError as error:
        raise ValueError(f"{error}{_names(given)}") from error


def _check_lowest(name: str, value: Any, least: float, allowed: bool) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and (value > least or (allowed and value == least))):
        rule = f"at least {least:g}" if allowed else f"above {least:g}"
        raise ValueError(f"{label(name)} must be a number {rule}, not {value!r}.")


def _rows(given: dict[str, Any], names: dict[str, Any]) -> dict[str, int]:
    groups = {"per_device_train_batch_size": given.get("num_generations")}
    groups["per_device_eval_batch_size"] = given.get("num_generations_eval") or given.get("num_generations")
    if any(given.get(name) is not None for name in _ROWS):
        del groups["per_device_train_batch_size"]
    sizes = {name: size for name, size in groups.items() if isinstance(size, int) and size > 0}
    return {name: size for name, size in sizes.items() if names[name] % size}


def _precision(given: dict[str, Any]) -> dict[str, bool]:
    from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

    chosen = given.get("bf16") is not None or given.get("fp16")
    return {} if chosen or is_torch_bf16_gpu_available() or is_torch_xla_available() else {"bf16": False}


def _names(given: dict[str, Any]) -> str:
    """What the names in TRL's message are called in the documents."""
    renamed = [name for name in given if name in OTHER_NAMES.values()]
    return f" (Names: {', '.join(map(label, renamed))}.)" if renamed else ""


def lesson_config(config: GRPOConfig) -> tuple[TrainingFreeConfig, str | None]:
    """Return the settings of `TrainingFreeGRPO`, and its `output_dir`.

    Raises:
        ValueError: a setting that belongs to training with a gradient, or a value that can't work.
    """
    given = dict(vars(config))
    folder = given.pop("output_dir", None)
    for name in given:
        if name in DATA:
            raise ValueError(f"{name} in the config is for GRPOTrainer: give it to TrainingFreeGRPO's train.")
        if name not in WITHOUT_GRADIENT:
            raise ValueError(
                f"{label(name)} belongs to training with a gradient, and TrainingFreeGRPO has none: leave it out, or use "
                "GRPOTrainer."
            )
    try:
        return TrainingFreeConfig.from_mapping(given), folder
    except ValueError as error:
        raise ValueError(f"{error}{_names(given)}") from error

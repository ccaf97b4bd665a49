"""`GRPOConfig`: settings under the documents' names, TRL's, or those of `TrainingFreeConfig`."""

from __future__ import annotations

import os
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from trl_grpo_ext._suggest import did_you_mean
from trl_grpo_ext.training_free import TrainingFreeConfig

# The documents' names, and the names that TRL has for the same thing.
OTHER_NAMES = {
    "clip_eps": "epsilon",
    "clip_range": "epsilon",
    "gradient_accumulation": "gradient_accumulation_steps",
    "group_size": "num_generations",
    "kl_coef": "beta",
    "lr": "learning_rate",
    "max_epochs": "num_train_epochs",
    "normalize_advantages": "scale_rewards",
    "num_epochs_per_update": "num_iterations",
    "response_length": "max_completion_length",
    "temperature_eval": "eval_temperature",
    "temperature_train": "temperature",
}
# What the documents' oldest trainer takes from its `args` as well.
DATA = ("train_dataset", "eval_dataset", "reward_model", "reward_funcs")
WITHOUT_GRADIENT = frozenset(item.name for item in fields(TrainingFreeConfig))
# YAML 1.1 reads 1e-6 as a text.
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def with_gradient() -> dict[str, Any]:
    """Return the names that `ExtendedGRPOConfig` takes on the installed TRL, with their defaults."""
    from trl_grpo_ext.config import ExtendedGRPOConfig

    return {item.name: _default_of(item) for item in fields(ExtendedGRPOConfig) if item.init}


def _default_of(item: Any) -> Any:
    return item.default_factory() if item.default is MISSING else item.default


def label(known: str) -> str:
    """Return a setting's name, with the documents' names for it: `num_generations (group_size)`."""
    others = [name for name, target in OTHER_NAMES.items() if target == known]
    return f"{known} ({', '.join(others)})" if others else known


def _known(name: str) -> str:
    known = OTHER_NAMES.get(name, name)
    if known in WITHOUT_GRADIENT or known in DATA or known in (names := with_gradient()):
        return known
    everything = [*OTHER_NAMES, *WITHOUT_GRADIENT, *names, *DATA]
    raise AttributeError(
        f"GRPOConfig has no setting {name!r}{did_you_mean(name, everything) or '.'} It takes the names of docs/gym.md, "
        "those of ExtendedGRPOConfig on the installed TRL, and those of TrainingFreeConfig."
    )


def _value(name: str, value: Any) -> Any:
    if name != "normalize_advantages":
        return value
    if not isinstance(value, bool):
        raise ValueError(
            f"normalize_advantages must be True or False, not {value!r}; scale_rewards takes TRL's words."
        )
    return "group" if value else "none"


class GRPOConfig:
    """Settings of `GRPOTrainer` and `TrainingFreeGRPO`, checked by name when they are set and by value by the trainers.

    `GRPOArguments` and `ExperimentConfig` are this class. A setting that was not given has the trainer's own default;
    read from here, it is that of `GRPOTrainer`.

    Args:
        output_dir: as TRL's; of `TrainingFreeGRPO` the folder of the library and the reports.
        **settings: by any name of docs/gym.md.

    Raises:
        AttributeError: an unknown name.
        ValueError: two names of one setting.
    """

    def __init__(self, output_dir: str | None = None, **settings: Any) -> None:
        if output_dir is not None:
            self.output_dir = output_dir
        for name, value in settings.items():
            if _known(name) in vars(self):
                raise ValueError(f"GRPOConfig: {label(_known(name))} is given by two names; give one of them.")
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)[_known(name)] = _value(name, value)

    def __getattr__(self, name: str) -> Any:
        # Python asks here for what is not given, and copying asks for names with underscores.
        if name.startswith("_"):
            raise AttributeError(name)
        known = _known(name)
        value = vars(self)[known] if known in vars(self) else _default(known)
        return value != "none" if name == "normalize_advantages" else value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> GRPOConfig:
        """Read settings from a YAML file: one mapping of names to values, without sections.

        Raises:
            ValueError: another form, or a name given twice.
            AttributeError: an unknown name.
        """
        import yaml

        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
            raise ValueError(f"{path} must hold one mapping of settings to values, not {type(values).__name__}.")
        return cls(**{name: _number(value) for name, value in values.items()})


def _default(known: str) -> Any:
    if known in DATA:
        return None
    names = with_gradient()
    return names[known] if known in names else getattr(TrainingFreeConfig(), known)


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value

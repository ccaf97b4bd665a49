"""A run as a YAML file describes it: every key checked, then data and reward, and only then are models loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from trl_grpo_ext.training_free.budget import Budget, Price
from trl_grpo_ext.training_free.config import TrainingFreeConfig
from trl_grpo_ext.training_free.data_settings import DataSettings, Row, data_settings
from trl_grpo_ext.training_free.gate import GateConfig
from trl_grpo_ext.training_free.learner import TrainingFreeGRPO
from trl_grpo_ext.training_free.model_settings import ModelSettings, beside, model_settings
from trl_grpo_ext.training_free.preparation import check_reward, training_problems
from trl_grpo_ext.training_free.typed_values import checked_values, refuse_unknown

SECTIONS = ("policy", "reflector", "dataset", "held_out", "reward", "config", "gate", "budget", "output_dir")
NEEDED = ("policy", "dataset", "reward", "output_dir")


@dataclass(frozen=True)
class RunSettings:
    """What a run is made of.

    Args:
        policy: the model that is taught.
        reflector: the model that reflects; None: the policy.
        dataset: rows to learn from.
        held_out: rows for the gate; None: a share of the dataset.
        reward: name of a reward, or `file.py:function`.
        config: the settings, with gate and budget.
        output_dir: the result folder.
    """

    policy: ModelSettings
    reflector: ModelSettings | None
    dataset: DataSettings
    held_out: DataSettings | None
    reward: str
    config: TrainingFreeConfig
    output_dir: Path

    @classmethod
    def from_mapping(cls, values: Any, folder: Path | None = None) -> RunSettings:
        """Return the settings of a mapping, as YAML gives it. Nothing is loaded, and no row read.

        Args:
            values: policy, dataset, reward and output_dir; reflector, held_out, config, gate and budget where wanted.
            folder: where relative paths are looked up first; `output_dir` is relative to the working directory.

        Raises:
            ValueError: naming the key.
            ImportError: a backend's package is not installed.
        """
        folder = folder or Path.cwd()
        if not isinstance(values, Mapping):
            raise ValueError(f"a run must be a mapping with the keys {', '.join(SECTIONS)}, not {values!r:.100}.")
        refuse_unknown(values, SECTIONS)
        missing = next((name for name in NEEDED if values.get(name) is None), None)
        if missing is not None:
            raise ValueError(f"{missing} is missing; a run needs {', '.join(NEEDED)}.")
        found = cls(
            model_settings(values["policy"], "policy", folder),
            _unless_none(values.get("reflector"), model_settings, "reflector", folder),
            data_settings(values["dataset"], "dataset", folder),
            _unless_none(values.get("held_out"), data_settings, "held_out", folder),
            _reward(values["reward"], folder),
            config_of(values),
            Path(_text(values["output_dir"], "output_dir")).expanduser(),
        )
        found._check_prices()
        return found

    def _check_prices(self) -> None:
        models = [self.policy, *([] if self.reflector is None else [self.reflector])]
        if self.config.budget.max_cost is not None:
            self.config.budget.check_models([model.name for model in models])

    def prepare(self) -> PreparedRun:
        """Read the data, and check that they fit the gate and the reward. No model is loaded.

        Raises:
            ValueError: see `DataSettings.rows`, `TrainingFreeGRPO.train`.
        """
        rows = self.dataset.rows("dataset")
        held_out = None if self.held_out is None else self.held_out.rows("held_out")
        problems, kept = training_problems(self.config, rows, held_out)
        check_reward(self.config, self.reward, [*problems, *kept])
        return PreparedRun(self, rows, held_out, len(problems), len(kept))


@dataclass(frozen=True)
class PreparedRun:
    """A run that fits together; its models are not loaded.

    Args:
        settings: of the run.
        rows: to learn from, before the gate's share is taken.
        held_out: rows for the gate; None: a share of the rows.
        problems: number of problems to learn from.
        kept: number of problems of the gate.
    """

    settings: RunSettings
    rows: list[Row]
    held_out: list[Row] | None
    problems: int
    kept: int

    def learner(self) -> TrainingFreeGRPO:
        """Load the models, and open the result folder."""
        settings = self.settings
        policy = settings.policy.load()
        reflector = None if settings.reflector is None else settings.reflector.load()
        return TrainingFreeGRPO(policy, settings.config, reflector=reflector, output_dir=settings.output_dir)


def config_of(values: Mapping[str, Any]) -> TrainingFreeConfig:
    """Return the config of the sections `config`, `gate` (null: no gate) and `budget`.

    Raises:
        ValueError: naming the key.
    """
    given = checked_values(TrainingFreeConfig, values.get("config") or {}, "config", ("gate", "budget"))
    if "gate" in values:
        given["gate"] = None if values["gate"] is None else _built(GateConfig, values["gate"], "gate")
    config = _built(TrainingFreeConfig, given, "config", checked=True)
    return config if values.get("budget") is None else replace(config, budget=_budget(values["budget"]))


def _budget(values: Any) -> Budget:
    given = checked_values(Budget, values, "budget")
    prices = {
        str(name): _built(Price, price, f"budget.prices.{name}") for name, price in (given.get("prices") or {}).items()
    }
    return _built(Budget, given | {"prices": prices}, "budget", checked=True)


def _built(cls: type, values: Any, where: str, checked: bool = False) -> Any:
    """The dataclass of the values; its own sentences begin with a field's name and lack the section's."""
    given = values if checked else checked_values(cls, values, where)
    try:
        return cls(**given)
    except ValueError as error:
        sentence = str(error).removeprefix(f"{cls.__name__}: ")
        names = [item.name for item in fields(cls)]
        joint = "." if sentence.startswith(tuple(names)) else ": "
        raise ValueError(f"{where}{joint}{sentence}") from error


def _unless_none(values: Any, read: Any, where: str, folder: Path) -> Any:
    return None if values is None else read(values, where, folder)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text, not {value!r}.")
    return value


def _reward(value: Any, folder: Path) -> str:
    """A file beside the run's own by its full path: it is looked up again whenever the reward is made."""
    path, colon, function = _text(value, "reward").rpartition(":")
    if not colon or not path.endswith(".py"):
        return str(value)
    return f"{beside(path, folder).absolute()}:{function}"

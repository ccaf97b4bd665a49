"""Clip ranges and KL coefficients that change during training, for TRL's stock GRPOTrainer and for ours.

TRL reads `epsilon_low`, `epsilon_high` and `beta` at every micro-step, so a callback can change them. What they have
learned is kept in the `trainer_state.json` of each checkpoint and taken from there when training is resumed.
"""

from abc import ABC, abstractmethod
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from trl_grpo_ext._attach import calling_trainer
from trl_grpo_ext.kl import AdaptiveKLController
from trl_grpo_ext.losses import ClipSchedule


class StatefulCallback(TrainerCallback, ExportableState, ABC):
    """A callback that knows its trainer and keeps a state in the checkpoint.

    Subclasses define `state_dict`, `load_state_dict` and `attach`.
    """

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.trainer: Any = None
        self.saved: dict[str, Any] | None = None

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint keeps, as JSON has it."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""

    @abstractmethod
    def attach(self, trainer: Any) -> None:
        """Check the trainer, and take from it what is needed."""

    def state(self) -> dict[str, Any]:
        """Return what transformers writes into `trainer_state.json`."""
        return {"args": self.arguments, "attributes": {"saved": self.state_dict() if self.trainer else self.saved}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the trainer; after a resume, go on where the checkpoint was.

        Raises:
            RuntimeError: called by something else than a `transformers.Trainer`.
        """
        self.trainer = calling_trainer()
        if self.trainer is None:
            raise RuntimeError(f"{type(self).__name__} found no trainer among its callers.")
        self.attach(self.trainer)
        # A checkpoint from before this callback was added has no entry, and saving looks for one.
        kept = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        saved = kept["attributes"]["saved"] if isinstance(kept, dict) else None
        if state.global_step > 0 and saved:
            self.load_state_dict(saved)


def _new_mean(trainer: Any, name: str, before: int) -> float:
    """The mean of what the trainer has logged under a name during this optimizer step; NaN for nothing."""
    values = trainer._metrics["train"].get(name, [])[before:]
    return sum(values) / len(values) if values else float("nan")


class ClipScheduleCallback(StatefulCallback):
    r"""Clip range times a factor: `epsilon_low = epsilon * factor`, `epsilon_high` alike.

    Args:
        kind: "constant", "linear", "cosine" or "adaptive"; see `losses.ClipSchedule`.
        final_factor: factor at the end of "linear" and "cosine".
        target_fraction: share of clipped tokens that "adaptive" aims at.

    Raises:
        ValueError: a value out of range.
        TypeError: at the start of training, a trainer that is not a GRPO trainer.
    """

    metric = "clip_ratio/region_mean"

    def __init__(
        self, kind: str = "constant", final_factor: float | None = None, target_fraction: float | None = None
    ) -> None:
        super().__init__(kind=kind, final_factor=final_factor, target_fraction=target_fraction)
        self.schedule = ClipSchedule(kind, final_factor, target_fraction)  # type: ignore[arg-type]
        self._before = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the adaptive factor."""
        return self.schedule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the adaptive factor."""
        self.schedule.load_state_dict(state)

    def attach(self, trainer: Any) -> None:
        """Check that the trainer has a clip range."""
        if not hasattr(trainer, "epsilon_low"):
            raise TypeError(f"{type(self).__name__} needs a GRPOTrainer, not {type(trainer).__name__}.")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the clip range of this optimizer step."""
        factor = self.schedule.factor(state.global_step / max(state.max_steps, 1))
        high = args.epsilon if args.epsilon_high is None else args.epsilon_high
        self.trainer.epsilon_low, self.trainer.epsilon_high = args.epsilon * factor, high * factor
        self._before = len(self.trainer._metrics["train"].get(self.metric, []))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the schedule see the clip fraction of this optimizer step."""
        self.schedule.observe(_new_mean(self.trainer, self.metric, self._before))


class AdaptiveKLCallback(StatefulCallback):
    r"""`beta` steered so that the KL divergence per token comes to a target (Ziegler et al., arXiv 1909.08593).

    Measured is TRL's metric `kl`, in nats per token. The trainer's first `beta` must be above 0.

    Args:
        target: wanted KL divergence, nats per token, above 0.
        gain: relative change per optimizer step at an error of 1; errors are cut to 0.2.

    Raises:
        ValueError: a value out of range; at the start of training, `beta` 0.
        TypeError: at the start of training, a trainer that is not a GRPO trainer.
    """

    metric = "kl"

    def __init__(self, target: float = 0.01, gain: float = 0.1) -> None:
        super().__init__(target=target, gain=gain)
        self.target, self.gain = target, gain
        # Checks the values now; the coefficient is the trainer's, known at the start of training.
        self.controller = AdaptiveKLController(1.0, target, gain)
        self._before = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the coefficient."""
        return self.controller.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the coefficient."""
        self.controller.load_state_dict(state)

    def attach(self, trainer: Any) -> None:
        """Take the trainer's coefficient as the first one."""
        beta = getattr(trainer, "beta", None)
        if beta is None:
            raise TypeError(f"{type(self).__name__} needs a GRPOTrainer, not {type(trainer).__name__}.")
        if beta == 0.0:
            raise ValueError(
                "AdaptiveKLCallback needs a reference model and a coefficient to begin with: set beta above 0."
            )
        self.controller = AdaptiveKLController(trainer.args.beta, self.target, self.gain)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the coefficient of this optimizer step."""
        self.trainer.beta = self.controller.beta
        self._before = len(self.trainer._metrics["train"].get(self.metric, []))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the controller see the KL divergence of this optimizer step, and log the coefficient."""
        self.controller.update(_new_mean(self.trainer, self.metric, self._before))
        self.trainer._metrics["train"]["beta"].append(self.trainer.beta)


class CurriculumCallback(StatefulCallback):
    """Keeps the curriculum of an `ExtendedGRPOTrainer` in the checkpoint; the trainer adds it by itself."""

    def state_dict(self) -> dict[str, Any]:
        """Return the target difficulty and the prompts drawn in this epoch."""
        return self.trainer.curriculum.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them, and let an epoch that had begun begin with the same prompts."""
        self.trainer.curriculum.load_state_dict(state)
        if self.trainer.state.epoch % 1:
            self.trainer.curriculum_sampler.resume()

    def attach(self, trainer: Any) -> None:
        """Check that the trainer has a curriculum."""
        if getattr(trainer, "curriculum", None) is None:
            raise TypeError("CurriculumCallback needs an ExtendedGRPOTrainer with curriculum_column set.")

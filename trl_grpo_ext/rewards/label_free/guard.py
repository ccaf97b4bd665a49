"""The collapse guard: labelled canary rows beside a reward that reads no label."""

import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trl_grpo_ext._suggest import did_you_mean
from trl_grpo_ext.rewards.adapters.calls import callable_name
from trl_grpo_ext.rewards.adapters.signatures import joint_signature
from trl_grpo_ext.rewards.calling_trainer import in_evaluation
from trl_grpo_ext.rewards.composition.components import call_component, mean_score
from trl_grpo_ext.rewards.composition.groups import Score
from trl_grpo_ext.rewards.label_free.collapse import CollapseDetector

if TYPE_CHECKING:
    from trl_grpo_ext.rewards.label_free.callback import CollapseGuardCallback

POLICIES = ("warn", "stop", "fallback")

logger = logging.getLogger(__name__)


def take_rows(call: Mapping[str, Any], rows: Sequence[int], total: int) -> dict[str, Any]:
    """Return a reward call restricted to some rows: lists of `total` entries are cut, everything else is passed on."""
    return {
        name: [value[row] for row in rows] if isinstance(value, list | tuple) and len(value) == total else value
        for name, value in call.items()
    }


def sum_across_ranks(values: Sequence[float]) -> list[float]:
    """Sum each value over the training processes, so that all of them decide alike; the values themselves alone.

    A collective operation where torch.distributed is initialised: every rank must call it, as TRL's ranks do by
    calling synchronous rewards in lockstep.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return list(values)
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, list(values))
    return [math.fsum(column) for column in zip(*gathered, strict=True)]


class CollapseGuard:
    """A label-free reward with labelled canaries beside it, which notice when it stops meaning what it should.

    Mix a few percent of rows with ground truth into the training data, marked by a column. The guard calls `reward` on
    every row and `truth` on the canary rows, compares the two over training (`CollapseDetector`), and warns at the
    first alarm. If the alarm stays for `patience` measurements it acts by policy. Canary rows teach nothing (None for
    whole groups) so that they stay a measurement, unless `train_on_canaries`.

    Use it in the trainer's process, not in a worker: `GRPOTrainer(reward_funcs=[guard], callbacks=[guard.callback()])`.
    A measurement is one reward call in training that holds canary rows, summed over ranks; in evaluation every row gets
    the guarded reward, or the fallback, and needs no mark. A resumed run goes on with what was detected if its
    checkpoints are `ExtendedGRPOTrainer`'s or a `CheckpointCallback`'s; otherwise detection starts anew.
    Failure modes: canaries unlike the training rows don't notice its collapse; too few of them raise false alarms or
    none (see `min_drop`); the labels must never be in the prompt.

    Args:
        reward: the label-free reward. What rises is its `pseudo_signal` where it has one (`SelfConsistencyReward`,
            `CompositeReward`), else the mean of its rewards.
        truth: a labelled reward with values in [0, 1], called with the canary rows only.
        canary_column: the column that marks them, by a true value; "canary" by default.
        policy: "warn" (default) only warns; "stop" ends training after the step, through `callback()`; "fallback"
            uses `fallback` for the other rows from then on.
        fallback: the reward to fall back on; needed for, and only allowed with, the policy "fallback".
        train_on_canaries: give canary rows the `truth` reward instead of None; False by default.
        window, min_rise, min_drop, patience: see `CollapseDetector`; 20, 0.05, 0.05 and 5 by default.
        name: "guarded_" and the reward's own name by default.

    Attributes:
        collapsed: whether the guard has acted, or would have under "warn".
        last_metrics: the figures of the last call that held canaries, also logged where TRL passes `log_metric`:
            `canary_accuracy`, the mean truth on canary rows; `reward_accuracy`, the share of canary rows scored by
            `reward` on which "positive" and "true (above 0.5)" agree, left out where it scored none;
            `<name>/pseudo_reward`; `<name>/alarms` in a row; `<name>/collapsed`, 0 or 1.
        pseudo_signal: the last `pseudo_reward`, NaN before it.

    Raises:
        ValueError: an unknown policy, a fallback without its policy or the policy without it, a number out of range; in
            a call: no canary column, or a truth outside [0, 1] or None.
        RuntimeError: in a call: the policy is "stop", but the trainer has no `callback()` of this guard.
    """

    def __init__(
        self,
        reward: Callable[..., Any],
        truth: Callable[..., Any],
        canary_column: str = "canary",
        policy: str = "warn",
        fallback: Callable[..., Any] | None = None,
        train_on_canaries: bool = False,
        window: int = 20,
        min_rise: float = 0.05,
        min_drop: float = 0.05,
        patience: int = 5,
        name: str | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(
                f"collapse guard: policy must be one of {', '.join(POLICIES)}, not {policy!r}"
                f"{did_you_mean(policy, POLICIES) or '.'}"
            )
        if (policy == "fallback") != (fallback is not None):
            raise ValueError(
                f"collapse guard: policy 'fallback' and the argument fallback go together, but policy is {policy!r} and "
                f"fallback is {'not given' if fallback is None else 'given'}."
            )
        self.__name__ = name or f"guarded_{callable_name(reward)}"
        self.reward, self.truth, self.fallback = reward, truth, fallback
        self.canary_column, self.policy, self.train_on_canaries = canary_column, policy, train_on_canaries
        self.detector = CollapseDetector(window, min_rise, min_drop, patience)
        self.collapsed = False
        self.watched = False
        self.last_metrics: dict[str, float] = {}
        self.pseudo_signal = math.nan
        self.__signature__ = joint_signature(self.parts, [canary_column])

    @property
    def parts(self) -> tuple[Callable[..., Any], ...]:
        """The rewards that it calls: the guarded one, the truth, and the fallback where there is one."""
        return (self.reward, self.truth, *([] if self.fallback is None else [self.fallback]))

    def callback(self) -> "CollapseGuardCallback":
        """Return the `TrainerCallback` that stops training for this guard and logs its figures on older TRL."""
        from trl_grpo_ext.rewards.label_free.callback import CollapseGuardCallback

        return CollapseGuardCallback(self)

    def state_dict(self) -> dict[str, Any]:
        """Return what was detected so far, which a checkpoint keeps."""
        return {"detector": self.detector.state_dict(), "collapsed": self.collapsed, "pseudo": self.pseudo_signal}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self.detector.load_state_dict(state["detector"])
        self.collapsed, self.pseudo_signal = state["collapsed"], state["pseudo"]

    def _canaries(self, call: Mapping[str, Any], total: int) -> list[int]:
        marks = call.get(self.canary_column)
        if marks is None or len(marks) != total:
            raise ValueError(
                f"{self.__name__}: the data set must have the column {self.canary_column!r}, true for labelled canary "
                "rows and false for the others; add it, or set canary_column."
            )
        return [row for row in range(total) if marks[row]]

    def _check_watched(self, trainer_state: Any) -> None:
        training = (getattr(trainer_state, "max_steps", 0) or 0) > 0
        if self.policy == "stop" and training and not self.watched:
            raise RuntimeError(
                f"{self.__name__}: policy 'stop' needs the guard's callback in the same process; pass callbacks="
                "[guard.callback()] to the trainer, run the guard in process, or set policy='warn'."
            )

    def _truths(self, call: Mapping[str, Any], canaries: Sequence[int], total: int) -> list[float]:
        if not canaries:
            return []
        found = call_component(self.truth, "truth", len(canaries), take_rows(call, canaries, total))
        truths = [score for score in found if score is not None and 0 <= score <= 1]
        if len(truths) < len(canaries):
            raise ValueError(
                f"{self.__name__}: truth must score every canary row from 0 to 1, but returned {found[:8]}; "
                "mark only rows with ground truth as canaries."
            )
        return truths

    def __call__(self, completions: Sequence[Any], **kwargs: Any) -> list[Score]:
        """Return the guarded reward per completion; None, or the truth, for canary rows."""
        call, total = {**kwargs, "completions": completions}, len(completions)
        if in_evaluation():
            return self._rewards(call_component(self.reward, "reward", total, call), (), call, total)
        self._check_watched(kwargs.get("trainer_state"))
        canaries = self._canaries(call, total)
        truths = self._truths(call, canaries, total)
        pseudo = call_component(self.reward, "reward", total, call)
        self._measure(pseudo, canaries, truths, kwargs.get("log_metric"))
        rewards = self._rewards(pseudo, canaries, call, total)
        for row, truth in zip(canaries, truths, strict=True):
            rewards[row] = truth if self.train_on_canaries else None
        return rewards

    def _rewards(
        self, pseudo: Sequence[Score], canaries: Sequence[int], call: Mapping[str, Any], total: int
    ) -> list[Score]:
        if self.fallback is None or not self.collapsed:
            return list(pseudo)
        marked, rewards = set(canaries), list[Score]([None] * total)
        others = [row for row in range(total) if row not in marked]
        if others:
            found = call_component(self.fallback, "fallback", len(others), take_rows(call, others, total))
            for row, score in zip(others, found, strict=True):
                rewards[row] = score
        return rewards

    def _measure(
        self,
        pseudo: Sequence[Score],
        canaries: Sequence[int],
        truths: Sequence[float],
        log_metric: Callable[[str, float], None] | None,
    ) -> None:
        signal = float(getattr(self.reward, "pseudo_signal", mean_score(pseudo)))
        known = not math.isnan(signal)
        scores = [(pseudo[row], truth) for row, truth in zip(canaries, truths, strict=True)]
        agreed = [(score > 0) == (truth > 0.5) for score, truth in scores if score is not None]
        sums = (signal if known else 0.0, known, math.fsum(truths), len(truths), sum(agreed), len(agreed))
        signal_sum, signals, truth_sum, rows, agreed_sum, judged = sum_across_ranks(sums)
        if not rows or not signals:
            return
        self.pseudo_signal = signal_sum / signals
        self._observe(self.pseudo_signal, truth_sum / rows)
        self.last_metrics = {
            "canary_accuracy": truth_sum / rows,
            **({"reward_accuracy": agreed_sum / judged} if judged else {}),
            f"{self.__name__}/pseudo_reward": self.pseudo_signal,
            f"{self.__name__}/alarms": float(self.detector.alarms),
            f"{self.__name__}/collapsed": float(self.collapsed),
        }
        if log_metric is not None:
            for name, value in self.last_metrics.items():
                log_metric(name, value)

    def _observe(self, pseudo: float, canary: float) -> None:
        collapsed = self.detector.observe(pseudo, canary)
        if not self.collapsed and (collapsed or self.detector.alarms == 1) and self.detector.means is not None:
            logger.warning(
                "%s: the pseudo-reward rises (to %.3f) while canary accuracy falls (to %.3f, from at best %.3f): %s",
                self.__name__,
                self.detector.means[1],
                self.detector.means[0],
                self.detector.best_canary,
                f"collapsed, policy {self.policy!r}." if collapsed else "the policy may be collapsing.",
            )
        self.collapsed = self.collapsed or collapsed

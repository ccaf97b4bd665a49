"""`HealthCallback`: the rules, checked while a GRPO trainer trains; each speaks once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from transformers.utils import logging

from trl_grpo_ext.callbacks import StatefulCallback
from trl_grpo_ext.health.history import History
from trl_grpo_ext.health.rules import Finding, findings
from trl_grpo_ext.row_log import RowLog

logger = logging.get_logger(__name__)
FILE = "health.jsonl"
REWARD = "_calculate_rewards"


class HealthCallback(StatefulCallback):
    """Warns when the metrics of a GRPO run show that it goes wrong: `callbacks=[HealthCallback()]`.

    For TRL's GRPOTrainer and everything derived from it. The rules are those of `trl_grpo_ext.health.rules`; each speaks
    once in a run, also across a resume: a warning in the log of the main process, a line of `health.jsonl` in the
    output folder (`step`, `rule`, `seen`, `change`), and `on_finding`. It logs `health/reward_seconds` (time in reward
    functions per optimizer step, this process) and `health/reward_share` (of the step's time). Training is not changed.

    Args:
        on_finding: called with each finding on the main process.

    Raises:
        TypeError: at the start of training, a trainer that is not a GRPO trainer.
    """

    def __init__(self, on_finding: Callable[[Finding], None] | None = None) -> None:
        super().__init__()
        self.on_finding = on_finding
        self.findings: list[Finding] = []
        self._fired: set[str] = set()
        self._history, self._taken = History(), 0
        self._seconds, self._began = 0.0, 0.0
        self._undo: Callable[[], None] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the rules that have spoken."""
        return {"fired": sorted(self._fired)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them."""
        self._fired = set(state["fired"])

    def attach(self, trainer: Any) -> None:
        """Check the trainer, and time its rewards."""
        if not hasattr(trainer, REWARD):
            raise TypeError(f"HealthCallback needs a GRPOTrainer, not {type(trainer).__name__}.")
        self._fired, self.findings = set(), []
        self._history, self._taken = History(), 0
        if self._undo is None:
            self._undo = self._timed(trainer)

    def _timed(self, trainer: Any) -> Callable[[], None]:
        calculate, before = getattr(trainer, REWARD), vars(trainer).get(REWARD)

        @functools.wraps(calculate)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            try:
                return calculate(*args, **kwargs)
            finally:
                self._seconds += perf_counter() - start

        def undo() -> None:
            # Where somebody has wrapped it after us, theirs stays, and ours below it does no harm.
            if vars(trainer).get(REWARD) is timed:
                if before is None:
                    delattr(trainer, REWARD)
                else:
                    setattr(trainer, REWARD, before)

        setattr(trainer, REWARD, timed)
        return undo

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the trainer; a run from the beginning begins its file, a resumed one drops what came after its step."""
        super().on_train_begin(args, state, control, **kwargs)
        if state.is_world_process_zero:
            RowLog(Path(args.output_dir) / FILE).keep_up_to(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the trainer its method back."""
        if self._undo is not None:
            self._undo()
            self._undo = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock of the step."""
        self._seconds, self._began = 0.0, perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log what the rewards took of the step."""
        whole = max(perf_counter() - self._began, 1e-9)
        metrics = self.trainer._metrics["train"]
        metrics["health/reward_seconds"].append(self._seconds)
        metrics["health/reward_share"].append(min(self._seconds / whole, 1.0))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Take what is new in the log, and check the rules that have not spoken."""
        for entry in state.log_history[self._taken :]:
            self._history.add(entry)
        self._taken = len(state.log_history)
        for found in findings(self._history, self._fired):
            self._fired.add(found.rule)
            self.findings.append(found)
            if state.is_world_process_zero:
                self._tell(found, Path(args.output_dir), state.global_step)

    def _tell(self, found: Finding, folder: Path, step: int) -> None:
        logger.warning(f"health, step {step}: {found}")
        RowLog(folder / FILE).write([{"step": step, **vars(found)}])
        if self.on_finding is not None:
            self.on_finding(found)
